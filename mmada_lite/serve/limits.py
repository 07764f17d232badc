"""What a server is told when it is started: where it listens, which model it opens, and how much a client may ask of it."""

from dataclasses import dataclass, field

MEGABYTE = 1_000_000
CHARACTERS_A_TOKEN = 32  # a prompt with more is too long for the model whatever its tokenizer does


@dataclass(frozen=True, slots=True)
class Options:
    """model, device, threads, speed: as `mmada_lite.load` takes them. host, port: where it listens (port 0: any free one).

    batch: requests that run at once, None for as many as are fast on the device. api_key: what a client must send, None for
    nothing; several keys are a line each. origins: pages of other hosts that may call (CORS). waiting: requests that wait at
    most; seconds: what a request may take, waiting included; grace: what running requests may take when the server
    stops. body: bytes of a request at most; pixels: of a picture at most.
    """

    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    speed: str = "exact"
    batch: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = field(default=None, repr=False)
    origins: tuple[str, ...] = ()
    waiting: int = 64
    seconds: float = 600.0
    grace: float = 30.0
    body: int = 20 * MEGABYTE
    pixels: int = 16 * MEGABYTE
