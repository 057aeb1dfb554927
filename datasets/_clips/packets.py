"""Packets of a media file and what they decode to, past every error of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet, VideoStream
    from av.container import InputContainer


def packets(container: InputContainer, stream: AudioStream | VideoStream, errors: list[str]) -> Iterator[Packet[Any]]:
    """Yield the packets of a stream; an error that ends the file early is added to `errors` by its kind."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        errors.append(type(error).__name__)


def decoded_audio(container: InputContainer, errors: list[str]) -> Iterator[AudioFrame]:
    """Yield every block of the first sound track that can be decoded; `errors` gets the kind of each error."""
    stream = container.streams.audio[0]
    if decodable(stream, errors):
        yield from decoded(packets(container, stream, errors), errors)


def decodable(stream: AudioStream | VideoStream, errors: list[str]) -> bool:
    """Tell whether a stream can be decoded, with one thread from now on; `errors` gets the reason why not."""
    if not stream.codec_context:  # None, whatever its type says, where FFmpeg does not know the codec
        errors.append("unknown codec")
        return False
    stream.codec_context.thread_count = 1
    return True


def decoded(encoded: Iterable[Packet[Any]], errors: list[str]) -> Iterator[Any]:
    """Yield every frame of the packets of a stream that can be decoded; `errors` gets the kind of each error."""
    import av

    for packet in encoded:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            errors.append(type(error).__name__)
            continue
        for frame in frames:
            if frame.is_corrupt:  # the decoder made up what it could not read
                errors.append("concealed")
            yield frame


def broken(errors: list[str]) -> tuple[str, ...]:
    """Return `errors` as one fault, or none."""
    return (f"{len(errors)} packets are damaged ({errors[0]})",) if errors else ()
