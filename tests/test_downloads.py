"""Where Keras keeps what it downloads, and whether a server can be reached."""

import socket
import threading
import time

from fashion import environment

import pytest


def test_home_is_kerass_own(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    assert environment.keras_home() == tmp_path / "keras"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert environment.keras_home() == tmp_path / ".keras"


def test_server_that_refuses_is_not_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match="Connection refused"):
        environment.check_reachable(f"http://127.0.0.1:{port}/")


@pytest.fixture
def silent_server():
    """The URL of a server of this machine that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_server_that_does_not_answer_is_given_up(silent_server):
    start = time.monotonic()
    with pytest.raises(OSError, match=r"no answer|timed out"):
        environment.check_reachable(silent_server, seconds=1)
    assert time.monotonic() - start < 5


def test_server_that_answers_is_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = []

        def answer():
            connection, _ = server.accept()
            asked.append(connection.recv(1000))
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        environment.check_reachable(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        thread.join()
    assert asked[0].startswith(b"HEAD /file ")  # and not the file itself
