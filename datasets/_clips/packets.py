"""Packets of a media file and what they decode to, past every error of the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer


def packets(container: InputContainer, stream: AudioStream | VideoStream, errors: list[str]) -> Iterator[Packet[Any]]:
    """Yield the packets of a stream; an error that ends the file early is added to `errors` by its kind."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError as error:
        errors.append(type(error).__name__)


def decoded_video(container: InputContainer, errors: list[str]) -> Iterator[VideoFrame]:
    """Yield every frame of the first video stream that can be decoded; `errors` gets the kind of each error."""
    return _decoded(container, container.streams.video[0], errors)


def decoded_audio(container: InputContainer, errors: list[str]) -> Iterator[AudioFrame]:
    """Yield every block of the first sound track that can be decoded; `errors` gets the kind of each error."""
    return _decoded(container, container.streams.audio[0], errors)


def _decoded(container: InputContainer, stream: AudioStream | VideoStream, errors: list[str]) -> Iterator[Any]:
    import av

    if not stream.codec_context:  # None, whatever its type says, where FFmpeg does not know the codec
        errors.append("unknown codec")
        return
    stream.codec_context.thread_count = 1
    for packet in packets(container, stream, errors):
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
