"""`--server` against a small ComfyUI look-alike: the real wire formats, over real sockets."""

import base64
import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reelbrush.nodes import server
from reelbrush.nodes.sample import files as sample
from reelbrush.nodes.websocket import WebSocket

KINDS = {
    "LoadVideo": {
        "input": {"required": {"file": [["there.mp4"], {"video_upload": True}]}},
        "output": ["VIDEO"],
        "display_name": "Load Video",
    },
    "SaveVideo": {
        "input": {"required": {"video": ["VIDEO"], "filename_prefix": ["STRING", {"default": "v"}]}},
        "output": [],
        "output_node": True,
        "display_name": "Save Video",
    },
}
GRAPH = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "there.mp4"}, "_meta": {"title": "Load Video"}},
    "2": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["1", 0], "filename_prefix": "v"},
        "_meta": {"title": "Save Video"},
    },
}
DONE = [
    ("execution_start", {}),
    ("executing", {"node": "2"}),
    ("progress", {"node": "2", "value": 1, "max": 2}),
]
DONE += [("executing", {"node": None})]


def frame(payload, opcode=1, final=True):
    """A server's (unmasked) websocket frame."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 65536:
        return head + bytes([126]) + size.to_bytes(2, "big") + payload
    return head + bytes([127]) + size.to_bytes(8, "big") + payload


class Fake(ThreadingHTTPServer):
    """What a test says it answers, and what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.events, self.frames = list(DONE), None
        self.outputs = {
            "2": {"images": [{"filename": "v_00001_.mp4", "subfolder": "video", "type": "output"}]}
        }
        self.refuses, self.status, self.queued, self.sent = None, {}, True, []
        self.posted = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def got(self, path):
        return [body for where, body in self.sent if where == path]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, content, code=200):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/ws":
            return self.websocket()
        if path == "/object_info":
            return self.answer(KINDS)
        if path == "/view":
            self.server.sent.append(("/view", self.path))
            return self.answer(b"the clip")
        if path == "/queue":
            waiting = [[0, "run-7"]] if self.server.queued else []
            return self.answer({"queue_running": waiting, "queue_pending": []})
        record = {"outputs": self.server.outputs, "status": self.server.status}
        return self.answer({} if self.server.outputs is None else {"run-7": record})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.sent.append((self.path, body))
        if self.path == "/upload/image":
            return self.answer({"name": "sent.mp4", "subfolder": "", "type": "input"})
        if self.path == "/prompt" and self.server.refuses:
            return self.answer(self.server.refuses, 400)
        if self.path == "/prompt":
            self.server.posted.set()
            return self.answer({"prompt_id": "run-7"})
        return self.answer(b"")

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.end_headers()
        self.close_connection = True
        if self.server.frames is not None:
            for piece in self.server.frames:
                self.wfile.write(piece)
            self.server.sent.append(("pong", self.connection.recv(64)))
            return
        self.server.posted.wait(5)
        self.wfile.write(frame(b"\0\0\0\1picture", opcode=2))
        for kind, data in self.server.events:
            note = {"type": kind, "data": {"prompt_id": "run-7", **data}}
            self.wfile.write(frame(json.dumps(note).encode()))
        time.sleep(0.5)


@pytest.fixture
def comfy():
    with Fake() as fake:
        threading.Thread(target=fake.serve_forever, args=(0.05,), daemon=True).start()
        yield fake
        fake.shutdown()


@pytest.fixture
def graph(home):
    path = home / "g.json"
    path.write_text(json.dumps(GRAPH))
    return path


@contextmanager
def refused(words):
    with pytest.raises((ValueError, RuntimeError), match=words) as caught:
        yield
    assert "\n" not in str(caught.value)


def test_a_graph_is_sent_and_its_result_brought_here(comfy, graph, home):
    (file,) = server.render_on(comfy.url, graph)
    assert file == home / "output" / "video" / "v_00001_.mp4" and file.read_bytes() == b"the clip"
    (sent,) = map(json.loads, comfy.got("/prompt"))
    assert sent["prompt"] == GRAPH and sent["client_id"]
    assert comfy.got("/view") == ["/view?filename=v_00001_.mp4&subfolder=video&type=output"]
    assert server.render_on(comfy.url, graph)[0].name == "v_00002_.mp4"  # the first is not overwritten


def test_out_names_the_result(comfy, graph, tmp_path):
    assert server.render_on(comfy.url, graph, out=str(tmp_path / "a" / "r.mp4")) == [tmp_path / "a" / "r.mp4"]
    assert not list((tmp_path / "a").glob(".*"))


def test_files_of_set_are_uploaded(comfy, graph, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"my clip")
    server.render_on(comfy.url, graph, [f"Load Video.file={tmp_path / 'mine.mp4'}", "2.filename_prefix=w"])
    (upload,) = comfy.got("/upload/image")
    assert b'filename="mine.mp4"' in upload and b"my clip" in upload
    prompt = json.loads(comfy.got("/prompt")[0])["prompt"]
    assert prompt["1"]["inputs"]["file"] == "sent.mp4" and prompt["2"]["inputs"]["filename_prefix"] == "w"


def test_the_sample_is_uploaded_where_it_is_missing(comfy, graph, home, monkeypatch):
    def write(folder, names):
        path = home / names[0]
        path.write_bytes(b"the sample")
        return [path]

    monkeypatch.setattr(sample, "write_sample", write)
    graph.write_text(json.dumps(GRAPH).replace("there.mp4", sample.CLIP))
    server.render_on(comfy.url, graph)
    assert b"the sample" in comfy.got("/upload/image")[0]


def test_faults_are_one_sentence_that_names_the_node(comfy, graph):
    comfy.events = [
        ("execution_error", {"node_id": "2", "node_type": "SaveVideo", "exception_message": "full\n"})
    ]
    with refused(r"^SaveVideo \(node 2\): full$"):
        server.render_on(comfy.url, graph)
    comfy.events = [("execution_interrupted", {"node_id": "2"})]
    with refused("cancelled on the server, at node 2"):
        server.render_on(comfy.url, graph)
    wrong = {"message": "Value not in list", "details": "file: 'x' not in []"}
    comfy.refuses = {
        "error": {"message": "invalid"},
        "node_errors": {"1": {"class_type": "LoadVideo", "errors": [wrong]}},
    }
    with refused(r"refuses LoadVideo \(node 1\): Value not in list: file: 'x'"):
        server.render_on(comfy.url, graph)
    comfy.refuses = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": []}
    with refused("refuses the graph: Prompt has no outputs$"):
        server.render_on(comfy.url, graph)
    graph.write_text(json.dumps(GRAPH).replace("LoadVideo", "ReelBrushNew"))
    with refused(r"does not have ReelBrushNew \(node 1\): install the pack"):
        server.render_on(comfy.url, graph)


def test_a_server_that_is_not_there_is_one_sentence(comfy, graph):
    comfy.server_close()
    with refused("no ComfyUI answers at http://127.0.0.1:1 "):
        server.render_on("127.0.0.1:1", graph)
    with refused("is no web address"):
        server.render_on("ftp://127.0.0.1", graph)


def test_ctrl_c_cancels_this_run_there(comfy, graph, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        server.render_on(comfy.url, graph)
    assert json.loads(comfy.got("/queue")[0]) == {"delete": ["run-7"]}
    assert json.loads(comfy.got("/interrupt")[0]) == {"prompt_id": "run-7"}


def test_when_messages_get_lost_the_history_is_asked(comfy, graph, monkeypatch):
    monkeypatch.setattr(server, "QUIET", 0.1)
    comfy.events = []
    assert len(server.render_on(comfy.url, graph)) == 1
    comfy.status = {
        "status_str": "error",
        "messages": [["execution_error", {"node_id": "2", "node_type": "S", "exception_message": "late"}]],
    }
    with refused(r"S \(node 2\): late"):
        server.render_on(comfy.url, graph)
    comfy.outputs, comfy.queued = None, False
    with refused("no longer knows this run"):
        server.render_on(comfy.url, graph)


def test_the_websocket_reads_every_kind_of_frame(comfy):
    long, longer = b"x" * 300, b"y" * 70000
    comfy.frames = [
        frame(b"hel", final=False) + frame(b"ping!", opcode=9) + frame("lö".encode(), opcode=0),
        frame(long, opcode=2)[:50],
        frame(long, opcode=2)[50:] + frame(longer, opcode=2) + frame(b"", opcode=8),
    ]
    with WebSocket(comfy.url.replace("http", "ws") + "/ws?clientId=a", timeout=5) as socket:
        assert socket.receive() == "hellö"
        assert socket.receive() == long and socket.receive() == longer
        with pytest.raises(ConnectionError, match="closed"):
            socket.receive()
    time.sleep(0.1)
    (pong,) = comfy.got("pong")
    assert pong[0] == 0x8A and bytes(b ^ pong[2 + i % 4] for i, b in enumerate(pong[6:11])) == b"ping!"


def test_a_timeout_in_the_middle_of_a_frame_loses_nothing(comfy):
    class Slow(list):
        def __iter__(self):
            yield frame(b"half and half")[:7]
            time.sleep(0.4)
            yield frame(b"half and half")[7:]

    comfy.frames = Slow()
    with WebSocket(comfy.url.replace("http", "ws") + "/ws?", timeout=0.15) as socket:
        with pytest.raises(TimeoutError):
            socket.receive()
        time.sleep(0.5)
        assert socket.receive() == "half and half"
