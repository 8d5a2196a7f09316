"""Metrics for Prometheus: what a scrape shows, who may scrape, and what a hostile scraper cannot do."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.cli.running import Running
from tests.cli.running import hostline as command
from tests.leaks import wait_until
from tests.serving import ServerThread, loop_names
from tests.watched import shop

import hostline
from hostline.bridges import exposition
from hostline.bridges.prometheus import ServiceCollector, listen, serve_metrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


def get(path: object, target: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """Return the status and the body."""
    connection = UnixConnection(str(path))
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> Samples:
    """Return every sample by name and sorted labels; names occur in one family only."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families if family.name.startswith("hostline"))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def scrape(path: object) -> Samples:
    status, text = get(path)
    assert status == 200, text
    return samples(text)


def of(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


@pytest.fixture(params=loop_names())
def server(request: pytest.FixtureRequest, sock_dir: Path) -> Iterator[ServerThread]:
    with ServerThread(shop(), sock_dir / "s", loop=request.param) as running:
        yield running


def test_a_scrape_shows_what_the_service_does(server: ServerThread, sock_dir: Path) -> None:
    path = sock_dir / "m"
    with serve_metrics(server.server, str(path)), hostline.connect(server.address) as line:
        for number in range(3):
            line.call("quick", number)
        line.call("thread", 1)
        with pytest.raises(hostline.RemoteError):
            line.call("refuse", raises=[])
        with pytest.raises(hostline.InternalError):
            line.call("boom", "x")
        found = scrape(path)
        shop = {"service": "shop"}
        assert of(found, "hostline_open_connections", **shop) == 1
        assert of(found, "hostline_connections_total", **shop) == 1
        assert of(found, "hostline_connections_refused_total", **shop) == 0
        assert of(found, "hostline_calls_finished_total", **shop) == 6
        assert of(found, "hostline_calls_failed_total", **shop) == 2
        assert of(found, "hostline_calls_running", **shop) == 0
        assert of(found, "hostline_method_results_total", **shop, method="quick") == 3
        assert of(found, "hostline_user_connections", **shop, uid=str(os.getuid())) == 1
        assert of(found, "hostline_start_time_seconds", **shop) > 1.7e9
        name = "hostline_call_duration_seconds"
        assert of(found, f"{name}_count", **shop, method="quick", outcome="ok") == 3
        assert of(found, f"{name}_bucket", **shop, method="quick", outcome="ok", le="+Inf") == 3
        assert 0 < of(found, f"{name}_sum", **shop, method="thread", outcome="ok") < 10
        assert of(found, f"{name}_count", **shop, method="refuse", outcome="declared") == 1
        assert of(found, f"{name}_count", **shop, method="boom", outcome="internal") == 1
        assert "process_cpu_seconds_total" in get(path)[1]


def test_a_topics_items_are_counted(sock_dir: Path) -> None:
    service = shop()
    prices: hostline.Topic[int] = hostline.Topic(int, max_queue=2)
    service.topic("prices", prices)
    with ServerThread(service, sock_dir / "s") as server, serve_metrics(server.server, str(sock_dir / "m")):
        with prices.subscribe():
            for price in range(5):
                prices.publish(price)
            found = scrape(sock_dir / "m")
    labels = {"service": "shop", "topic": "prices"}
    assert of(found, "hostline_topic_items_published_total", **labels) == 5
    assert of(found, "hostline_topic_items_dropped_total", **labels) == 3
    assert of(found, "hostline_topic_items_waiting", **labels) == 2
    assert of(found, "hostline_topic_subscribers", **labels) == 1


def test_the_collector_stands_in_a_registry_of_ones_own_and_for_several_services(sock_dir: Path) -> None:
    with ServerThread(shop("one"), sock_dir / "1") as one, ServerThread(shop("two"), sock_dir / "2") as two:
        registry = prometheus_client.CollectorRegistry(auto_describe=True)
        collector = ServiceCollector(one.server, two.server)
        registry.register(collector)
        with hostline.connect(one.address) as line:
            line.call("quick", 1)
        found = samples(prometheus_client.generate_latest(registry).decode())
        assert of(found, "hostline_calls_finished_total", service="one") == 1
        assert of(found, "hostline_calls_finished_total", service="two") == 0
        collector.close()
        assert one.server.observers == two.server.observers == ()
        assert one.do(lambda _: prometheus_client.generate_latest(registry)).count(b"hostline_open_connections{") == 2


def test_after_the_end_of_a_server_its_last_numbers_are_told(sock_dir: Path) -> None:
    with ServerThread(shop(), sock_dir / "s") as server:
        collector = ServiceCollector(server.server, durations=False)
        with hostline.connect(server.address) as line:
            line.call("quick", 1)
    families = {family.name: family for family in collector.collect()}
    assert families["hostline_calls_finished"].samples[0].value == 1


# --- the socket ----------------------------------------------------------------------------------------


def test_curl_reads_it(server: ServerThread, sock_dir: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    path = str(sock_dir / "m")
    with serve_metrics(server.server, path):
        arguments = ["curl", "-sS", "--fail", "--compressed", "--unix-socket", path, "http://localhost/metrics"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=15)
    assert ("hostline_open_connections", (("service", "shop"),)) in samples(done.stdout)


def test_the_file_is_0600_and_gone_at_the_end_and_a_live_one_is_not_robbed(
    server: ServerThread, sock_dir: Path
) -> None:
    path = sock_dir / "m"
    with serve_metrics(server.server, str(path)) as exposition:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert exposition.address == str(path)
        with pytest.raises(hostline.AddressInUseError):
            serve_metrics(server.server, str(path))
        assert len(server.server.observers) == 1
        assert get(path)[0] == 200
    assert not path.exists()
    assert server.server.observers == ()
    exposition.close()


@pytest.mark.root
def test_another_user_is_not_served(server: ServerThread, sock_dir: Path, run_as: Callable[..., Any]) -> None:
    path = sock_dir / "m"
    with serve_metrics(server.server, str(path)):
        sock_dir.chmod(0o755)
        path.chmod(0o666)  # somebody widens the file: the rule of the mode that was asked for still holds
        with pytest.raises(ConnectionError):
            run_as(65534, get, str(path))
        assert get(path)[0] == 200


def test_a_forked_child_lets_go_of_the_socket_and_leaves_the_file(sock_dir: Path) -> None:
    path = sock_dir / "m"
    with ServerThread(shop(), sock_dir / "s") as server:
        reader, writer = os.pipe()
        has_let_go, let_go = os.pipe()
        with serve_metrics(server.server, str(path)) as exposition:
            pid = os.fork()
            if pid == 0:
                try:
                    exposition.close()
                    os.write(let_go, b"x")
                    os.read(reader, 1)  # it lives on until the parent has looked
                finally:
                    os._exit(0)
            assert get(path)[0] == 200
            os.read(has_let_go, 1)
        assert not path.exists()
        serve_metrics(server.server, str(path)).close()
        os.write(writer, b"x")
        os.waitpid(pid, 0)
        for fd in (reader, writer, has_let_go, let_go):
            os.close(fd)


def test_it_ends_when_the_server_begins_to_stop(sock_dir: Path) -> None:
    path = sock_dir / "m"
    with ServerThread(shop(), sock_dir / "s") as server:
        exposition = serve_metrics(server.server, str(path))
    assert wait_until(lambda: not path.exists() and exposition.address is None)


def test_a_successor_waits_for_the_address(sock_dir: Path) -> None:
    path = sock_dir / "m"
    with ServerThread(shop(), sock_dir / "s") as one, ServerThread(shop("two"), sock_dir / "t") as two:
        first = serve_metrics(one.server, str(path))
        with serve_metrics(two.server, str(path), wait=10) as second:
            assert second.address is None
            first.close()
            assert wait_until(lambda: second.address is not None)
            assert of(scrape(path), "hostline_calls_running", service="two") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_tcp_port_of_this_host_serves_too(server: ServerThread, host: str) -> None:
    try:
        exposition = serve_metrics(server.server, f"{host}:0")
    except (hostline.SocketError, OSError):
        if host == "[::1]":
            pytest.skip("no IPv6 here")
        raise
    with exposition:
        assert exposition.address is not None
        where, _, port = exposition.address.rpartition(":")
        connection = http.client.HTTPConnection(where.strip("[]"), int(port), timeout=10)
        connection.request("GET", "/metrics")
        assert connection.getresponse().read().startswith(b"# HELP")
        connection.close()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("0.0.0.0:9100", "on this host only"),
        ("192.168.1.1:9100", "on this host only"),
        ("[::]:9100", "on this host only"),
        ("127.0.0.1:99999", "up to 65535"),
        ("999.0.0.1:9100", "999.0.0.1"),
        ("tcp:metrics", "write 127.0.0.1:PORT"),
    ],
)
def test_what_the_network_or_nobody_could_read_is_refused(address: str, text: str) -> None:
    with pytest.raises(hostline.AddressError, match=text):
        listen(address)


def test_a_port_has_no_mode() -> None:
    with pytest.raises(hostline.AddressError, match="has no mode and no owner"):
        listen("127.0.0.1:0", mode=0o660)


# --- requests ------------------------------------------------------------------------------------------


def ask(path: Path, data: bytes) -> bytes:
    """Send bytes and return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        answer = b""
        try:
            sock.sendall(data)
            while more := sock.recv(1 << 16):
                answer += more
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b" 200 "),
        (b"GET /metrics?name[]=nothing HTTP/1.0\n\n", b" 200 "),
        (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\nAccept-Encoding: gzip\r\n\r\n", b" 200 "),
        (b"GET / HTTP/1.1\r\n\r\n", b" 404 "),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", b" 404 "),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b" 501 "),
        (b"HELO\r\n\r\n", b"Bad request syntax"),
        (b"\xff\xfe\r\n\r\n", b"Bad request syntax"),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b" 505 "),
        (b"GET /" + b"a" * 9000, b" 431 "),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b" 431 "),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: " + b"b" * 20_000 + b"\r\n\r\n", b" 431 "),
    ],
)
def test_a_request_of_any_form_is_answered_and_the_next_one_too(sock_dir: Path, request_: bytes, status: bytes) -> None:
    with ServerThread(shop(), sock_dir / "s") as server, serve_metrics(server.server, str(sock_dir / "m")):
        assert status in ask(sock_dir / "m", request_)[:600]
        assert get(sock_dir / "m")[0] == 200


def test_a_scraper_that_says_nothing_is_closed_and_does_not_keep_others_waiting(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "METRICS_TIMEOUT", 0.2)
    with ServerThread(shop(), sock_dir / "s") as server, serve_metrics(server.server, str(sock_dir / "m")):
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as gone:
            silent.connect(str(sock_dir / "m"))
            gone.connect(str(sock_dir / "m"))
            gone.close()
            assert get(sock_dir / "m")[0] == 200
            silent.settimeout(10)
            assert silent.recv(1) == b""


def test_a_blocked_loop_is_told_as_503_and_a_close_does_not_wait_for_it(
    sock_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hostline.bridges import prometheus

    monkeypatch.setattr(prometheus, "METRICS_TIMEOUT", 0.2)
    gate = threading.Event()
    service = shop()

    @service.method(inline=True)
    def block() -> None:
        gate.wait(10)

    with ServerThread(service, sock_dir / "s") as server, hostline.connect(server.address) as line:
        with serve_metrics(server.server, str(sock_dir / "m")):
            blocked = threading.Thread(target=line.call, args=("block",))
            blocked.start()
            try:
                assert wait_until(lambda: get(sock_dir / "m")[0] == 503)
            finally:
                gate.set()
                blocked.join()
            assert get(sock_dir / "m")[0] == 200


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def program(sock_dir: Path) -> Path:
    file = sock_dir / "app.py"
    file.write_text("from tests.watched import shop\nshop = shop()\n", encoding="utf-8")
    return file


def test_serve_metrics_on_a_socket_with_a_mode(sock_dir: Path, program: Path) -> None:
    path = sock_dir / "m"
    options = ("-a", sock_dir / "s", "--metrics", path, "--metrics-mode", "0660")
    with Running("serve", f"{program}:shop", *options, ready="serving") as server:
        assert wait_until(lambda: path.exists() and stat.S_IMODE(path.stat().st_mode) == 0o660)
        assert command("call", sock_dir / "s", "quick", "1").stdout == b"2\n"
        assert of(scrape(path), "hostline_method_results_total", service="shop", method="quick") == 1
        assert server.stop() == 0
    assert not path.exists()


def test_any_worker_answers_for_all_of_them(sock_dir: Path, program: Path) -> None:
    path = sock_dir / "m"
    options = ("-a", sock_dir / "s", "--metrics", path, "--workers", "2")
    with Running("serve", f"{program}:shop", *options, ready="with 2 workers") as server:
        for number in range(4):
            command("call", sock_dir / "s", "quick", str(number))

        def total() -> float:
            found = scrape(path)
            assert not any(name.startswith(("process_", "hostline_method", "hostline_call_d")) for name, _ in found)
            workers = {dict(labels)["worker"] for _, labels in found}
            assert len(workers) == 2
            return sum(value for (name, _), value in found.items() if name == "hostline_calls_finished_total")

        assert wait_until(lambda: {total() for _ in range(5)} == {4}, 10)
        assert server.stop() == 0
    assert not path.exists()


def test_a_successor_serves_the_metrics_at_the_same_address(sock_dir: Path, program: Path) -> None:
    path = sock_dir / "m"
    options = ("-a", sock_dir / "s", "--metrics", path)
    with Running("serve", f"{program}:shop", *options, ready="serving") as first:
        assert wait_until(path.exists)
        scrape(path)
        with Running("serve", f"{program}:shop", *options, "--takeover", ready="serving") as second:
            assert first.wait() == 0
            assert wait_until(path.exists, 10)
            assert wait_until(lambda: get(path)[0] == 200, 10)
            assert second.stop() == 0


def test_options_of_a_socket_that_is_not_wanted_are_refused(program: Path) -> None:
    done = command("serve", f"{program}:shop", "--metrics-mode", "0660")
    assert done.returncode == 2
    assert b"are for the socket of --metrics ADDRESS" in done.stderr
