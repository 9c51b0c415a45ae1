"""Every setting: its key, type, default, bounds and one sentence of documentation.

The structs mirror the TOML tables and keys exactly; ``docs/reference/configuration.md`` is made
from this file. Durations are float seconds here and text with a unit in TOML; sizes are bytes here,
and bytes or text with a unit in TOML. A default chosen by
an RFC or by experience says so in its sentence.

Longer than a file should be: a setting is looked for in one list, and the page is made from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from mailstrom.types import OnDoubt, Priority

Port = Annotated[int, Meta(ge=1, le=65535)]
# extra["unit"] tells the loader: TOML has text with a unit here (or a path, see below)
Duration = Annotated[float, Meta(ge=0, le=3650 * 86400, extra={"unit": "duration"})]
Size = Annotated[int, Meta(ge=1, le=1 << 40, extra={"unit": "size"})]
Wait = Annotated[float, Meta(ge=0.001, le=365 * 86400, extra={"unit": "duration"})]

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all tables."""


class Retention(Table, frozen=True, kw_only=True):
    """How long the spool keeps what is finished; unsaid, what it was created with holds."""

    bodies: Annotated[Duration, Meta(description="Content of finished messages.")] = 7 * DAY
    attempts: Annotated[Duration, Meta(description="Attempts and sessions.")] = 30 * DAY
    events: Annotated[Duration, Meta(description="Events.")] = 30 * DAY


class Spool(Table, frozen=True, kw_only=True):
    """What the spool keeps."""

    idempotency_window: Annotated[
        Duration, Meta(description="How long an idempotency key of `send()` is remembered.")
    ] = DAY
    wal_limit: Annotated[
        int,
        Meta(
            ge=16 << 20,
            le=1 << 40,
            description="Length of the write-ahead log at which accepting and claiming stop,"
            " because some process keeps it from being emptied. The alarm comes at 64MiB, or at a"
            " quarter of a low limit.",
            extra={"unit": "size"},
        ),
    ] = 1 << 30
    retention: Retention = Retention()


class Delivery(Table, frozen=True, kw_only=True):
    """How mail leaves."""

    workers: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=1, le=256)],
        Meta(
            description="Delivery processes; `auto` is one per processor.", extra={"restart": True}
        ),
    ] = "auto"
    mode: Annotated[
        Literal["mx", "relay"],
        Meta(description="`mx` asks DNS for each domain's hosts; `relay` hands all to `[relay]`."),
    ] = "mx"
    port: Annotated[Port, Meta(description="TCP port of MX hosts (RFC 5321 section 4.5.4.2).")] = 25
    connect_timeout: Annotated[
        Wait, Meta(description="One TCP connect; the same setting as `[timeouts] connect`.")
    ] = 30.0
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=10000,
            description="SMTP connections of one worker, all sites, that work at a time. Those that"
            " their hosts keep waiting come on top: in all at most 15 times as many.",
        ),
    ] = 200
    on_doubt: Annotated[
        OnDoubt,
        Meta(
            description="A recipient that may or may not have been delivered (RFC 1047): send"
            " again, marked, or hold for a person; `send()` may decide per message."
        ),
    ] = OnDoubt.RETRY
    drain_timeout: Annotated[
        Duration,
        Meta(
            description="After TERM: time to finish what is on the wire. Then connections are cut;"
            " what was not sent whole goes back to the queue."
        ),
    ] = 30.0
    pipelining: Annotated[
        Literal["full", "transaction", "none"],
        Meta(
            description="Most that is sent ahead (RFC 2920): also the next envelope behind the"
            " final dot, one transaction's envelope, or nothing."
        ),
    ] = "full"
    chunking_max_size: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 26,
            description="Content up to this size goes by BDAT in one flight with its envelope"
            " where a server offers CHUNKING (RFC 3030); 0: never.",
            extra={"unit": "size"},
        ),
    ] = 262144
    pipeline_depth: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Messages in flight on one connection that offers CHUNKING and"
            " PIPELINING. More than one is for your own relays: a loss leaves all of them in"
            " doubt.",
        ),
    ] = 1


class Relay(Table, frozen=True, kw_only=True):
    """The smart hosts of `mode = "relay"`."""

    hosts: Annotated[
        tuple[str, ...],
        Meta(
            description='`"host"` or `"host:port"`, tried in this order; an IPv6 address stands in'
            " brackets."
        ),
    ] = ()
    port: Annotated[
        Port | None,
        Meta(
            description="Port of hosts that name none; when not set 465 with implicit TLS, 587"
            " with a username, else 25."
        ),
    ] = None
    tls: Annotated[
        Literal["none", "opportunistic", "required", "implicit"],
        Meta(
            description="STARTTLS not used, used where offered, or demanded (RFC 3207); or TLS"
            " from the first byte (RFC 8314)."
        ),
    ] = "opportunistic"
    username: (
        Annotated[
            str, Meta(min_length=1, max_length=255, description="User name for AUTH (RFC 4954).")
        ]
        | None
    ) = None
    password_file: Annotated[
        str | None,
        Meta(
            description="File whose first line is the password, or with `xoauth2` the access token;"
            " read at each connect, so that a new one is used at once. `config check` warns if"
            " others may read it.",
            extra={"unit": "path"},
        ),
    ] = None
    mechanism: Annotated[
        Literal["auto", "plain", "login", "cram-md5", "xoauth2"],
        Meta(
            description="AUTH mechanism; `auto` takes the best that the relay offers for a"
            " password, never `xoauth2`."
        ),
    ] = "auto"


class Dns(Table, frozen=True, kw_only=True):
    """Whom to ask about domains."""

    nameservers: Annotated[
        tuple[str, ...],
        Meta(description='`"ip"`, `"ip:port"` or `"[::1]:53"`; not together with `resolver`.'),
    ] = ()
    resolver: Annotated[
        Literal["system", "google", "cloudflare", "quad9"],
        Meta(description="`system` is /etc/resolv.conf; the others are public, plain DNS."),
    ] = "system"
    tls: Annotated[
        bool, Meta(description="Ask over TLS (RFC 7858, port 853); not with the system resolver.")
    ] = False
    tls_hostname: Annotated[
        str | None,
        Meta(description="Name in the nameservers' certificate; known for the public resolvers."),
    ] = None
    tcp: Annotated[
        bool,
        Meta(
            description="Ask by TCP alone, where UDP does not pass; an answer too long for UDP"
            " comes by TCP in any case."
        ),
    ] = False
    timeout: Annotated[Wait, Meta(description="One lookup, all nameservers together.")] = 5.0
    allow_loopback: Annotated[
        bool,
        Meta(description="Deliver to hosts whose address is loopback: for tests; else refused."),
    ] = False


class Tls(Table, frozen=True, kw_only=True):
    """What TLS a session must reach; opportunistic (RFC 7435) unless said.

    With a relay these go on top of `[relay] tls`: `require` and `verify` turn `opportunistic` into
    `required`.
    """

    require: Annotated[bool, Meta(description="Never send a message in plaintext.")] = False
    verify: Annotated[
        bool,
        Meta(description="Demand a valid certificate for the host's name; includes `require`."),
    ] = False
    ca_file: Annotated[
        str | None,
        Meta(
            description="PEM file of trusted roots instead of the system's, read anew at a reload.",
            extra={"unit": "path"},
        ),
    ] = None
    min_version: Annotated[
        Literal["1.2", "1.3"], Meta(description="Oldest TLS version accepted (RFC 8996).")
    ] = "1.2"


class Retry(Table, frozen=True, kw_only=True):
    """When a deferred recipient is tried again."""

    schedule: Annotated[
        tuple[Wait, ...],
        Meta(
            min_length=1,
            max_length=100,
            description="Delays after the first, second, ... deferral; the last one repeats"
            " (RFC 5321 section 4.5.4.1: two tries in the first hour, then every hours).",
        ),
    ] = (
        1 * MINUTE, 3 * MINUTE, 7 * MINUTE, 15 * MINUTE, 30 * MINUTE,
        1 * HOUR, 2 * HOUR, 4 * HOUR, 6 * HOUR,
    )  # fmt: skip
    max_age: Annotated[
        Wait,
        Meta(description="A recipient not delivered by then fails as expired (RFC: 4 to 5 days)."),
    ] = 5 * DAY
    jitter: Annotated[
        float, Meta(ge=0, le=0.9, description="Share by which each delay varies at random.")
    ] = 0.15


class Reports(Table, frozen=True, kw_only=True):
    """What senders are told of mail that came by SMTP, or that was sent with `notify` (RFC 3464).

    Nothing here speaks of the queue: what becomes of a message is in the views, reported or not.
    """

    send: Annotated[
        bool,
        Meta(
            description="Write reports at all. If not, nobody but the views says that a message"
            " failed."
        ),
    ] = True
    sender: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=320,
                description="Address in the From field of reports; when not set `mailer-daemon@`"
                " and `hostname`. Their envelope sender is always the null sender.",
            ),
        ]
        | None
    ) = None
    delays: Annotated[
        tuple[Wait, ...],
        Meta(
            max_length=10,
            description="How long a message may wait before its sender is told of the delay, once"
            " for each; none: never.",
        ),
    ] = (4 * HOUR, 24 * HOUR)
    original_size: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 24,
            description="Largest message that a report of a failure returns whole; of a larger one"
            " it returns the header. RET=HDRS of the sender (RFC 3461) goes before.",
            extra={"unit": "size"},
        ),
    ] = 256 * 1024


class Sites(Table, frozen=True, kw_only=True):
    """Limits of one site, the set of hosts that serves a domain."""

    connections: Annotated[
        int,
        Meta(ge=1, le=10000, description="Open connections to a site, over all processes."),
    ] = 20
    messages_per_connection: Annotated[
        int,
        Meta(
            ge=0,
            description="Messages sent over one connection; 0 is no limit: a count gathers"
            " connections at the slowest host, so reuse is bounded by time.",
        ),
    ] = 0
    idle: Annotated[
        Duration,
        Meta(
            description="How long a connection without work stays open: long enough for the next"
            " claim, short enough not to occupy the other side's slots."
        ),
    ] = 2.0
    suspend: Annotated[
        tuple[Wait, ...],
        Meta(
            min_length=1,
            max_length=100,
            description="How long a site is left alone after the first, second, ... failure of"
            " all its hosts; the last one repeats.",
        ),
    ] = (1 * MINUTE, 3 * MINUTE, 7 * MINUTE, 15 * MINUTE, 30 * MINUTE)


class Supervisor(Table, frozen=True, kw_only=True):
    """How the supervisor keeps its processes."""

    watchdog: Annotated[
        float,
        Meta(
            ge=5,  # beats come each second; less would kill the healthy on a busy machine
            le=86400,
            extra={"unit": "duration"},
            description="A process without a heartbeat for so long is killed and started anew.",
        ),
    ] = 60.0
    restart_backoff: Annotated[
        tuple[Duration, ...],
        Meta(
            min_length=1,
            max_length=100,
            description="Delays before the second, third, ... restart in a row; the last one"
            " repeats. The first is at once.",
        ),
    ] = (1.0, 2.0, 5.0, 10.0, 30.0)


class StageTimeouts(Table, frozen=True, kw_only=True):
    """Time for each stage of a session, at the values of RFC 5321 section 4.5.3.2."""

    connect: Annotated[Wait, Meta(description="One TCP connect to one address.")] = 30.0
    greeting: Annotated[Wait, Meta(description="The greeting.")] = 300.0
    ehlo: Annotated[Wait, Meta(description="Reply to EHLO or HELO.")] = 300.0
    starttls: Annotated[Wait, Meta(description="Reply to STARTTLS, and the handshake.")] = 300.0
    auth: Annotated[Wait, Meta(description="The AUTH exchange.")] = 300.0
    mail: Annotated[Wait, Meta(description="Reply to MAIL.")] = 300.0
    rcpt: Annotated[Wait, Meta(description="Reply to RCPT.")] = 300.0
    data: Annotated[Wait, Meta(description="Reply to DATA.")] = 120.0
    body: Annotated[Wait, Meta(description="Each block of content.")] = 180.0
    dot: Annotated[
        Wait,
        Meta(description="Reply to the final dot; a shorter time makes duplicates (RFC 1047)."),
    ] = 600.0
    rset: Annotated[Wait, Meta(description="Reply to RSET.")] = 20.0
    quit: Annotated[Wait, Meta(description="Reply to QUIT.")] = 5.0


class Stream(Table, frozen=True, kw_only=True):
    """A named policy: what holds for messages of the stream where `send()` says nothing.

    Applied when a message is accepted. A stream that is not declared has the defaults.
    """

    priority: Annotated[
        Priority, Meta(description="Order of claims at a site, where `send()` gives none.")
    ] = Priority.NORMAL
    max_age: (
        Annotated[Wait, Meta(description="As `[retry] max_age`, where `send()` gives no time.")]
        | None
    ) = None
    on_doubt: (
        Annotated[
            OnDoubt, Meta(description="As `[delivery] on_doubt`, where `send()` says nothing.")
        ]
        | None
    ) = None
    require_tls: Annotated[
        bool, Meta(description="Never send its messages in plaintext; `send()` cannot relax it.")
    ] = False
    max_size: (
        Annotated[Size, Meta(description="Largest message, in bytes; larger ones are refused.")]
        | None
    ) = None
    max_recipients: (
        Annotated[
            int,
            Meta(ge=1, le=1_000_000, description="Most recipients of one message; else refused."),
        ]
        | None
    ) = None


class Listener(Table, frozen=True, kw_only=True):
    """Mail that comes in by SMTP; without `bind` nothing listens.

    Mail is taken from clients in `allow_networks` and from users who log in, from nobody else.
    Everything but `bind`, `workers` and `implicit_tls` is taken over at a reload, by connections
    that begin then; who may send (`allow_networks`, `auth_file`) by open ones, too. Certificate,
    key and `auth_file` are read anew.
    """

    bind: Annotated[
        tuple[str, ...],
        Meta(
            max_length=64,
            description='`"ip:port"`, `"[::]:port"`; `"ip:465/tls"` speaks TLS from the first byte'
            " there. Bound once, by the supervisor, for all processes.",
            extra={"restart": True},
        ),
    ] = ()
    workers: Annotated[
        int,
        Meta(ge=1, le=64, description="Processes that listen.", extra={"restart": True}),
    ] = 1
    role: Annotated[
        Literal["submission", "relay"],
        Meta(
            description="`submission` completes headers (RFC 6409) and reads `X-Mailstrom-*`;"
            " `relay` adds Received and changes nothing else."
        ),
    ] = "submission"
    tls_cert: Annotated[
        str | None,
        Meta(
            description="PEM file of the certificate and its chain; without it TLS is not offered.",
            extra={"unit": "path"},
        ),
    ] = None
    tls_key: Annotated[
        str | None,
        Meta(
            description="PEM file of its private key; not set: it stands in `tls_cert`.",
            extra={"unit": "path"},
        ),
    ] = None
    implicit_tls: Annotated[
        bool,
        Meta(
            description="TLS from the first byte (RFC 8314) at every address of `bind`.",
            extra={"restart": True},
        ),
    ] = False
    allow_networks: Annotated[
        tuple[str, ...],
        Meta(description="Networks whose clients may send without logging in; `[]`: none."),
    ] = ("127.0.0.0/8", "::1/128")
    auth_file: Annotated[
        str | None,
        Meta(
            description="File of users who may log in, under TLS only, written by"
            " `mailstrom user add`.",
            extra={"unit": "path"},
        ),
    ] = None
    max_size: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 28,
            description="Largest message, announced by SIZE (RFC 1870).",
            extra={"unit": "size"},
        ),
    ] = 25 << 20
    max_recipients: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Recipients of one message; more get 452, and come in the next one"
            " (RFC 5321 section 4.5.3.1.8 asks for 100).",
        ),
    ] = 1000
    max_connections: Annotated[
        int,
        Meta(ge=1, le=50_000, description="Connections of one process; more get 421."),
    ] = 1000
    max_connections_per_client: Annotated[
        int,
        Meta(ge=1, le=50_000, description="Connections of one address to one process."),
    ] = 200
    max_messages_per_minute: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="Messages of one user, or of one address that did not log in, to one"
            " process; 0 is no limit.",
        ),
    ] = 0
    max_errors: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Refused commands since the last message that was taken, after which a"
            " connection is closed.",
        ),
    ] = 20
    timeout: Annotated[
        Wait,
        Meta(description="Longest silence of a client (RFC 5321 section 4.5.3.2.7)."),
    ] = 5 * MINUTE
    bare_newlines: Annotated[
        Literal["refuse", "fix"],
        Meta(
            description="A lone CR or LF in content: refused, or made a line end. The end of the"
            " content is CRLF.CRLF alone in either case."
        ),
    ] = "refuse"
    proxy_networks: Annotated[
        tuple[str, ...],
        Meta(
            description="Networks of proxies: their connections must begin with a PROXY header"
            " (v1 or v2), whose address is the client's. From nobody else is one taken."
        ),
    ] = ()


class Log(Table, frozen=True, kw_only=True):
    """What the supervisor and its processes log, on standard output.

    An engine inside an application logs through Python's `logging` instead, which decides.
    """

    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        Meta(description="Events below this level are not written."),
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "console"],
        Meta(
            description="`auto` is the console form on a terminal, else one JSON object a line.",
        ),
    ] = "auto"


class Config(Table, frozen=True, kw_only=True):
    """The effective configuration.

    Args:
        origin: absolute path of the file it came from, or None.
        sources: dotted key -> where its value came from, for every key that is not a default.
    """

    store: Annotated[
        str,
        Meta(
            min_length=1,
            description="The spool's file, or `scheme:rest` for a store of another kind.",
            extra={"unit": "path", "restart": True},
        ),
    ]
    hostname: Annotated[
        str,
        Meta(
            description="Our name in EHLO; a name that is not fully qualified is replaced by an"
            " address literal (RFC 5321 section 4.1.4)."
        ),
    ]
    spool: Spool = Spool()
    delivery: Delivery = Delivery()
    relay: Relay = Relay()
    dns: Dns = Dns()
    tls: Tls = Tls()
    retry: Retry = Retry()
    reports: Reports = Reports()
    sites: Sites = Sites()
    supervisor: Supervisor = Supervisor()
    timeouts: StageTimeouts = StageTimeouts()
    stream: dict[str, Stream] = field(default_factory=dict)
    listener: Listener = Listener()
    log: Log = Log()
    origin: str | None = None
    sources: dict[str, str] = field(default_factory=dict)
