"""The two numbers that decide whether an old result still counts.

`PROTOCOL_VERSION` is part of every cell's key: bump it when training semantics change, and the golden cell in the tests
fails until you do. `RESULT_SCHEMA` is the layout of `result.json`: 2 has accuracies with a modality missing
and points on the plane, 3 reliability and corrupted inputs under `final`.
"""

PROTOCOL_VERSION = 2
RESULT_SCHEMA = 3
