"""Roles: one process as authority or as decider, and the supervisor of several behind one port.

Deciders share one port (`SO_REUSEPORT`), over which the system spreads connections; at the file of
a socket they share the socket. The supervisor starts who died anew, passes signals on, and ends in
order: deciders ship what they hold and leave, then the authority lets it into the log. A child
whose supervisor is gone ends as if it had been told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import load_file
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.decisions.uniforms import key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.lanes.decider import lane_folder
from equipoise.agent.lanes.publishing import refuse_lanes
from equipoise.agent.maintenance.key_file import given_key, key_path, read_key
from equipoise.agent.service.daemon import Office
from equipoise.agent.service.decider import UNIX, Decider, build_decider
from equipoise.agent.service.http.access import Tokens
from equipoise.agent.service.http.connection_limits import BACKLOG
from equipoise.agent.service.run import (
    Signals,
    begin_log,
    listen,
    listening,
    run,
    serve_front,
)
from equipoise.agent.service.telemetry import Log
from equipoise.store.address import is_url
from equipoise.store.errors import StoreError
from equipoise.store.lanes import HubError, HubRefusedError, TermEndedError
from equipoise.store.lanes.opening import hub_path, look, open_hub
from equipoise.store.records import Era
from equipoise.store.words import plural

if TYPE_CHECKING:
    from equipoise.store.lanes.postgres import Sight

Role: TypeAlias = Literal["authority", "decider", "both"]

STANDING_BY = "standing by"
"""The line that says that another authority holds the office."""
AWAY = "the hub is away"
"""The line that says that nobody knows yet who holds it."""
LONGEST_SOCKET = 103
"""Bytes of the path of a socket: what every system takes."""
START_SECONDS = 120.0
"""Until a child has to be ready for the first time; an authority may read a long log before."""
LONGEST_PAUSE, STEADY_SECONDS = 10.0, 30.0
"""Between the death of a child and its next start, at the most; and how long one has to live so
that the pause begins anew."""
SURELY_SECONDS = 10.0
"""Beyond `shutdown_seconds`, after which a child is killed."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a child is to do.

    overrides: of `[service]`. listener: descriptor of the socket it is to listen at, None to bind
    one; shared: with others at the same port. authority: where a decider sends what it does not
    answer. share: deciders that share the address. name: for its log. sockets: where each decider
    that shares the address can be asked by its name.
    """

    role: Role
    config: str
    overrides: dict[str, Any]
    name: str
    listener: int | None = None
    shared: bool = False
    authority: str | None = None
    share: int = 1
    sockets: dict[str, str] = {}


def serve(
    config: Path,
    overrides: Mapping[str, object],
    role: Role = "both",
    workers: int | None = None,
) -> int:
    """Serve in a role until a signal; the exit code. workers: deciders behind one address; None for
    one process alone where the store allows it.

    Raises ConfigError, StoreError, AgentError or ListenError.
    """
    file = load_file(config, overrides)
    settings = file.service
    alone = role == "both" and workers is None and not is_url(settings.store)
    if alone:
        _say_left(settings)
        return run(config, overrides)
    check_lanes(config, overrides)
    order = Order(
        role=role,
        config=str(config),
        overrides=dict(overrides),
        name=role,
    )
    if role == "authority":
        return run_authority(order)
    if role == "decider" and workers is None:
        return run_decider(order)
    try:
        # Once, and not by every child.
        refuse_hub(settings, None, decider=role == "decider")
    except HubRefusedError:
        raise
    except HubError:
        pass  # the children say that it is away, and wait
    return Supervisor(order, settings, workers or 1).run()


def _say_left(settings: ServiceSettings) -> None:
    """Log what deciders of an earlier start left: alone nobody lets it into the log."""
    if not hub_path(settings.store).exists():
        return
    folder = lane_folder(settings.store, settings.lanes.folder)
    lanes = len(list(folder.glob("lane-*.lane")))
    with open_hub(settings.store, settings.durability) as hub:
        rows = sum(hub.waiting().values())
    if rows or lanes:
        sentence = (
            f"{plural(rows, 'row')} that deciders shipped and the files of {plural(lanes, 'lane')}"
            " are not in the log: they enter once it is served with --workers again"
        )
        Log(settings.log_level).warning("lanes-left", rows=rows, lanes=lanes, sentence=sentence)


def check_lanes(config: Path, overrides: Mapping[str, object]) -> None:
    """Raise ConfigError where an experiment cannot have several deciders."""
    file = load_file(config, overrides)
    why = refuse_lanes(file.experiment)
    if why is not None:
        raise ConfigError([why], str(config))


def run_authority(order: Order) -> int:
    """Be the authority, or stand by until the office is free; the exit code."""
    return run(Path(order.config), order.overrides, partial(_elected, order.name), order.name)


def refuse_hub(settings: ServiceSettings, key: bytes | None, *, decider: bool) -> Sight | None:
    """What is found at the database; None where the hub is a file. Nothing is made there.

    key: None where there is none yet. Raises HubRefusedError or AgentError where no waiting makes
    it the hub of this process, HubError where nobody answers.
    """
    if not is_url(settings.store):
        return None
    sight = look(settings.store)
    why = sight.refusal(decider=decider)
    if why is not None:
        raise HubRefusedError(f"{sight.name}: {why} (docs/scale-out.md, privileges)")
    if key is None or not sight.hub:
        return sight
    with open_hub(settings.store) as hub:
        newest = hub.newest()
        text = None if newest is None else hub.document(f"era:{newest.era}")
    if text is not None and msgspec.json.decode(text, type=Era).key_hash != key_hash(key):
        raise AgentError("the key is that of another experiment: give the one of the hub's")
    return sight


def check_database(config: Path, overrides: Mapping[str, object], role: Role) -> dict[str, Any]:
    """What a process of this role finds at the database of a configuration: `refused`, and a
    sentence; {} where the store is a file."""
    settings = load_file(config, overrides).service
    if not is_url(settings.store):
        return {}
    decider = role == "decider"
    try:
        key = given_key(settings.store, settings.key) if decider else None
        key = key or read_key(settings.store, settings.key)
        sight = refuse_hub(settings, key, decider=decider)
    except (StoreError, AgentError) as error:
        return {"refused": True, "sentence": f"store: refused: {error}"}
    assert sight is not None
    may = "may create tables" if sight.creates else "may not create tables"
    there = "an experiment is there" if sight.log else "no experiment is there yet"
    where = f"schema {sight.schema}"
    sentence = f"store: connected as {sight.role}, which {may} in {where}; {there}"
    if decider and not sight.hub:
        sentence += "; deciders wait until an authority was there"
    return {"refused": False, "sentence": sentence}


def _look_first(settings: ServiceSettings, key: bytes | None, log: Log, *, decider: bool) -> None:
    """Raise what no waiting changes; say that the hub is away, which may change."""
    try:
        refuse_hub(settings, key, decider=decider)
    except HubRefusedError:
        raise
    except HubError as error:
        log.warning("hub-away", problem=str(error))


@contextlib.contextmanager
def _elected(process: str, settings: ServiceSettings) -> Iterator[Office]:
    """Wait for the office, and keep it while the experiment opens. process: for the log."""
    name, seconds = f"{socket.gethostname()}:{os.getpid()}", settings.lanes.lease_seconds
    log = Log(settings.log_level, process=process)
    _look_first(settings, read_key(settings.store, settings.key), log, decider=False)
    said, trouble = "", ""
    while True:
        hub = None
        try:
            hub = open_hub(settings.store, settings.durability)
            term = hub.elect(name, seconds)
        except HubError as error:
            if str(error) != trouble:
                trouble = str(error)
                log.warning("hub-away", problem=trouble)
            term = None
        if term is not None and hub is not None:
            break
        state = AWAY if hub is None else STANDING_BY
        if hub is not None:
            hub.close()
            trouble = ""
        if state != said:
            said = state
            print(state, flush=True)
            if state == STANDING_BY:
                log.info("standing-by")
        time.sleep(min(seconds / 4.0, 1.0))
    done = threading.Event()

    def keep() -> None:
        """In a thread, with a hub of its own, until the authority does it itself."""
        try:
            with open_hub(settings.store, settings.durability) as own:
                while not done.wait(seconds / 4.0):
                    own.keep(term)
        except (HubError, TermEndedError):
            return  # the authority finds out

    keeping = threading.Thread(target=keep, name="term", daemon=True)
    keeping.start()
    try:
        yield Office(hub, term)
    finally:
        done.set()
        keeping.join()


def run_decider(order: Order) -> int:
    """Be one decider until a signal; the exit code."""
    path = Path(order.config)
    file = load_file(path, order.overrides)
    log, settings = begin_log(file.service, order.name)
    if settings.limits.decide_per_second is not None and order.share > 1:
        rate = settings.limits.decide_per_second / order.share
        fewer = msgspec.structs.replace(settings.limits, decide_per_second=rate)
        settings = msgspec.structs.replace(settings, limits=fewer)
    tokens = Tokens(settings.tokens)
    key = given_key(settings.store, settings.key)
    connect = partial(open_hub, settings.store, settings.durability, settings.lanes.lease_seconds)
    _look_first(settings, key, log, decider=True)
    folder = lane_folder(settings.store, settings.lanes.folder)
    decider = Decider(file.experiment, settings, connect, key, folder, log)
    switch = decider.kill_switch
    signals: Signals = {
        signal.SIGHUP: partial(_reread, path, order.overrides, decider, tokens),
        signal.SIGUSR1: partial(switch.signal, True),
        signal.SIGUSR2: partial(switch.signal, False),
    }
    others = {name: f"{UNIX}{path}" for name, path in order.sockets.items() if name != order.name}
    front = build_decider(
        decider, tokens, order.authority or settings.lanes.authority, order.name, others
    )
    with contextlib.ExitStack() as stack:
        if order.listener is None:
            listener = stack.enter_context(listening(settings, shared=order.shared))
        else:
            listener = socket.socket(fileno=order.listener)
        own = []
        if order.name in order.sockets:
            place = msgspec.structs.replace(settings, uds=order.sockets[order.name], uds_mode="600")
            own.append(stack.enter_context(listening(place)))
        serve_front(front, settings, listener, decider.counters.refused, signals, log, own)
    return 0


def _reread(path: Path, overrides: Mapping[str, object], decider: Decider, tokens: Tokens) -> None:
    """Take over tokens, log level and flags; the experiment's part comes from the authority."""
    try:
        new = load_file(path, overrides).service
        tokens.replace(new.tokens)
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        decider.log.error("reload-refused", problems=problems)
        return
    decider.log.level = new.log_level
    decider.settings = msgspec.structs.replace(
        decider.settings, log_level=new.log_level, ofrep=new.ofrep, tokens=new.tokens
    )
    decider.log.info("reloaded", changes=[])


class Child:
    """One process of the supervisor's. order: what it is told to do."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.lines: asyncio.Task[None] | None = None
        self._started = 0.0
        self._deaths = 0

    async def start(self) -> None:
        """Start it; `ready` is set once it listens, stands by, or waits for the hub."""
        self.ready.clear()
        passed = () if self.order.listener is None else (self.order.listener,)
        self._started = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "equipoise.agent.service.roles",
            msgspec.json.encode(self.order).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=passed,
            # Signals of the terminal are for the supervisor, which ends its children in order.
            start_new_session=True,
        )

    async def listen(self) -> None:
        """Wait for its lines until it ends."""
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line.startswith((b"listening on ", STANDING_BY.encode(), AWAY.encode())):
                self.ready.set()

    def pause(self) -> float:
        """Seconds until it may be started again."""
        lived = time.monotonic() - self._started
        self._deaths = 1 if lived > STEADY_SECONDS else self._deaths + 1
        return float(min(0.1 * 2.0 ** (self._deaths - 1), LONGEST_PAUSE))

    def signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def end(self, seconds: float) -> None:
        """Have it end in order, and in any case after so many seconds."""
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.wait(), seconds)
            except TimeoutError:
                self.signal(signal.SIGKILL)
                await self.process.wait()


class Supervisor:
    """Deciders behind one address, and their authority unless another machine has it.

    order: as of the whole; workers: how many deciders.
    """

    def __init__(self, order: Order, settings: ServiceSettings, workers: int) -> None:
        self._order, self._settings, self._workers = order, settings, workers
        self._log = Log(settings.log_level, process="supervisor")
        self._seconds = settings.shutdown_seconds + SURELY_SECONDS
        self._stopping = asyncio.Event()
        self._authority: Child | None = None
        self._deciders: list[Child] = []

    def run(self) -> int:
        """Until a signal; the exit code."""
        shared = self._settings.uds is None and hasattr(socket, "SO_REUSEPORT")
        if shared:
            # Others of this user could share the port too: it must be free.
            listen(self._settings).close()
        with (
            _socket_folder(self._settings) as folder,
            listening(self._settings, shared=shared) as listener,
        ):
            if not shared:
                listener.listen(BACKLOG)
            return asyncio.run(self._run(listener, shared, folder))

    async def _run(self, listener: socket.socket, shared: bool, folder: Path) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, self._pass_on, number)
        order, address = self._order, None
        if order.role == "both":
            path = folder / "0.sock"
            address = f"{UNIX}{path}"
            overrides = {**order.overrides, "uds": str(path), "uds_mode": "600"}
            made = msgspec.structs.replace(
                order, role="authority", overrides=overrides, name="authority"
            )
            self._authority = Child(made)
        overrides = dict(order.overrides)
        if shared:
            overrides["port"] = listener.getsockname()[1]
        names = [f"decider-{index + 1}" for index in range(self._workers)]
        sockets = {name: str(folder / f"{at}.sock") for at, name in enumerate(names, 1)}
        for name in names:
            made = msgspec.structs.replace(
                order,
                role="decider",
                overrides=overrides,
                name=name,
                listener=None if shared else listener.fileno(),
                shared=shared,
                authority=address,
                share=self._workers,
                sockets=sockets,
            )
            self._deciders.append(Child(made))
        first = [] if self._authority is None else [self._authority]
        everybody = [*first, *self._deciders]
        store = self._settings.store
        # Of a new store there is no key before its authority has made one.
        waits = not key_path(store, self._settings.key).exists()
        groups = [first, self._deciders] if waits else [everybody]
        watching = []
        try:
            for group in groups:
                for child in group:
                    await child.start()
                for child in group:
                    code = await self._first_ready(child)
                    if code is not None:
                        return code
            watching = [loop.create_task(self._watch(child)) for child in everybody]
            if not self._stopping.is_set():
                self._say_address(listener)
            await self._stopping.wait()
            return 0
        finally:
            self._stopping.set()
            await self._end()
            for task in watching:
                task.cancel()

    async def _first_ready(self, child: Child) -> int | None:
        """Wait until a child is ready for the first time; its exit code where it ended instead."""
        assert child.process is not None
        lines = asyncio.create_task(child.listen())
        tasks = {
            asyncio.create_task(child.ready.wait()),
            asyncio.create_task(child.process.wait()),
            asyncio.create_task(self._stopping.wait()),
        }
        await asyncio.wait(tasks, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        child.lines = lines
        if child.ready.is_set() or self._stopping.is_set():
            return None if child.ready.is_set() else 0
        code = child.process.returncode
        self._log.error("not-started", child=child.order.name, code=code)
        return 1 if code is None or code <= 0 else code

    async def _watch(self, child: Child) -> None:
        """Start a child again whenever it ends, until all are to end."""
        while not self._stopping.is_set():
            assert child.process is not None
            code = await child.process.wait()
            if self._stopping.is_set():
                return
            pause = child.pause()
            self._log.warning("child-ended", child=child.order.name, code=code, pause=pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return
            await child.start()
            child.lines = asyncio.create_task(child.listen())

    def _stop(self, number: int) -> None:
        self._log.info("stopping", signal=signal.Signals(number).name)
        self._stopping.set()

    def _pass_on(self, number: int) -> None:
        for child in (self._authority, *self._deciders):
            if child is not None:
                child.signal(number)

    async def _end(self) -> None:
        """First the deciders, which ship what they hold; then who lets it into the log."""
        await asyncio.gather(*(child.end(self._seconds) for child in self._deciders))
        if self._authority is not None:
            await self._authority.end(self._seconds)

    def _say_address(self, listener: socket.socket) -> None:
        place = listener.getsockname()
        if isinstance(place, str):
            address = f"unix://{os.path.abspath(place)}"
        else:
            host, port = place[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"listening on {address}", flush=True)


@contextlib.contextmanager
def _socket_folder(settings: ServiceSettings) -> Iterator[Path]:
    """A folder of this user's for the sockets of the children, which lies with the lanes where
    that path is short enough. What killed supervisors left there is removed."""
    place, begin = lane_folder(settings.store, settings.lanes.folder).absolute(), "sockets-"
    longest = place / f"{begin}4194304-xxxxxxxx" / "256.sock"
    if len(os.fsencode(longest)) > LONGEST_SOCKET:
        place, begin = Path(tempfile.gettempdir()), "equipoise-"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in place.glob(f"{begin}*-*"):
        pid = left.name.removeprefix(begin).partition("-")[0]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _lives(int(pid))):
            shutil.rmtree(left, ignore_errors=True)
    begin = f"{begin}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=begin, dir=place) as folder:
        yield Path(folder)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _end_with_supervisor() -> None:
    """In a thread: end this process in order once whoever started it is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """A child of the supervisor."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    try:
        code = run_authority(order) if order.role == "authority" else run_decider(order)
    except (ValueError, OSError) as error:
        if not (isinstance(error, OSError) or type(error).__module__.startswith("equipoise.")):
            raise
        for line in str(error).splitlines():
            print(f"equipoise: {line}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
