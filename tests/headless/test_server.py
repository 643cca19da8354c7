"""`--server` against a small stand-in for a ComfyUI server, over real connections."""

import asyncio
import json
import os
import signal
import sys
import threading
from contextlib import contextmanager

import pytest

from reelbrush.nodes import sample
from reelbrush.nodes.headless import server as connection
from reelbrush.nodes.headless import server_run
from reelbrush.nodes.headless.server_run import render_on

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

CODECS = {"required": {"codec": [["auto", "av1"], {"default": "auto"}]}}
FORMATS = [{"key": key, "inputs": CODECS} for key in ("mp4", "webm")]
KINDS = {
    "LoadVideo": {
        "input": {"required": {"file": [["there.mp4"], {"video_upload": True}]}},
        "output": ["VIDEO"],
        "display_name": "Load Video",
    },
    "SaveVideo": {
        "input": {
            "required": {
                "video": ["VIDEO"],
                "filename_prefix": ["STRING", {"default": "v"}],
                "format": ["COMFY_DYNAMICCOMBO_V3", {"options": FORMATS}],
            }
        },
        "output": [],
        "output_node": True,
        "display_name": "Save Video",
    },
}
GRAPH = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "there.mp4"}, "_meta": {"title": "Load Video"}},
    "2": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["1", 0], "filename_prefix": "v", "format": "mp4", "format.codec": "av1"},
        "_meta": {"title": "Save Video"},
    },
}
DONE = [
    ("execution_start", {}),
    ("executing", {"node": "2"}),
    ("progress", {"node": "2", "value": 1, "max": 2}),
    ("executing", {"node": None}),
]


class Fake:
    """Answers what a test sets, and records what it receives."""

    def __init__(self):
        self.events, self.record, self.queued = list(DONE), {}, True
        self.outputs = {
            "2": {"images": [{"filename": "v_00001_.mp4", "subfolder": "video", "type": "output"}]}
        }
        self.rejection, self.view, self.on_prompt = None, web.Response, lambda: None
        self.received: list[tuple[str, bytes | dict]] = []
        self.url = ""
        self._posted: asyncio.Event | None = None

    def got(self, path):
        return [body for where, body in self.received if where == path]

    def start(self):
        ready = threading.Event()

        def serve():
            self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(self._listen())
            ready.set()
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait(10)

    async def _listen(self):
        app = web.Application()
        app.router.add_get("/ws", self._websocket)
        app.router.add_get("/object_info", self._json(lambda: KINDS))
        app.router.add_get("/queue", self._json(self._queue))
        app.router.add_get("/history/{id}", self._json(self._history))
        app.router.add_get("/view", self._view)
        app.router.add_post("/{path:.*}", self._post)
        self._posted = asyncio.Event()
        self.runner = web.AppRunner(app, shutdown_timeout=0)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    def stop(self):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @staticmethod
    def _json(content):
        async def answer(request):
            return web.json_response(content())

        return answer

    def _queue(self):
        return {"queue_running": [[0, "run-7"]] if self.queued else [], "queue_pending": []}

    def _history(self):
        return {} if self.outputs is None else {"run-7": {"outputs": self.outputs, "status": self.record}}

    async def _view(self, request):
        self.received.append(("/view", dict(request.query)))
        return self.view(body=b"the clip")

    async def _post(self, request):
        self.received.append((request.path, await request.read()))
        if request.path == "/upload/image":
            return web.json_response({"name": "sent.mp4", "subfolder": "", "type": "input"})
        if request.path == "/prompt":
            self._posted.set()
            if self.rejection:
                return web.json_response(self.rejection, status=400)
            self.on_prompt()
            return web.json_response({"prompt_id": "run-7"})
        return web.Response()

    async def _websocket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await self._posted.wait()
        self._posted.clear()
        await socket.send_bytes(b"\0\0\0\1picture")
        for event, data in self.events:
            await socket.send_json({"type": event, "data": {"prompt_id": "run-7", **data}})
        await socket.receive()
        return socket


@pytest.fixture
def comfy():
    fake = Fake()
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def graph(home):
    path = home / "g.json"
    path.write_text(json.dumps(GRAPH))
    return path


@contextmanager
def error_message(words):
    with pytest.raises((ValueError, RuntimeError), match=words) as caught:
        yield
    assert "\n" not in str(caught.value)


def results(home):
    return [p for p in (home / "output" / "server").rglob("*") if p.is_file() and not p.name.startswith(".")]


def test_a_graph_is_sent_and_its_result_is_downloaded(comfy, graph, home):
    (file,) = render_on(comfy.url, graph)
    folder = home / "output" / "server" / "video"
    assert file == folder / "v_00001_.mp4" and file.read_bytes() == b"the clip"
    (sent,) = map(json.loads, comfy.got("/prompt"))
    assert sent["prompt"] == GRAPH and sent["client_id"]
    assert comfy.got("/view") == [{"filename": "v_00001_.mp4", "subfolder": "video", "type": "output"}]
    assert render_on(comfy.url, graph)[0].name == "v_00002_.mp4"  # the first is not overwritten


def test_out_names_the_result(comfy, graph, tmp_path):
    assert render_on(comfy.url, graph, out=str(tmp_path / "a" / "r.mp4")) == [tmp_path / "a" / "r.mp4"]
    assert not list((tmp_path / "a").glob(".*"))
    assert json.loads(comfy.got("/prompt")[0])["prompt"] == GRAPH


def test_the_suffix_of_out_sets_the_format_on_the_server(comfy, graph, tmp_path):
    comfy.outputs["2"]["images"][0]["filename"] = "v_00001_.webm"
    render_on(comfy.url, graph, out=tmp_path / "r.webm")
    inputs = json.loads(comfy.got("/prompt")[0])["prompt"]["2"]["inputs"]
    assert (inputs["format"], inputs["format.codec"]) == ("webm", "auto")
    with error_message("Save Video .* writes .mp4, .webm"):
        render_on(comfy.url, graph, out=tmp_path / "r.gif")


def test_files_of_set_are_uploaded(comfy, graph, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"my clip")
    render_on(comfy.url, graph, [f"Load Video.file={tmp_path / 'mine.mp4'}", "2.filename_prefix=w"])
    (upload,) = comfy.got("/upload/image")
    assert b'filename="mine.mp4"' in upload and b"my clip" in upload
    prompt = json.loads(comfy.got("/prompt")[0])["prompt"]
    assert prompt["1"]["inputs"]["file"] == "sent.mp4" and prompt["2"]["inputs"]["filename_prefix"] == "w"


def test_the_sample_is_uploaded_where_it_is_missing(comfy, graph):
    graph.write_text(json.dumps(GRAPH).replace("there.mp4", sample.CLIP))
    render_on(comfy.url, graph)
    assert (sample.FOLDER / sample.CLIP).read_bytes() in comfy.got("/upload/image")[0]


def test_errors_are_one_sentence_that_names_the_node(comfy, graph):
    comfy.events = [
        ("execution_error", {"node_id": "2", "node_type": "SaveVideo", "exception_message": "full\n"})
    ]
    with error_message(r"^SaveVideo \(node 2\): full$"):
        render_on(comfy.url, graph)
    comfy.events = [("execution_interrupted", {"node_id": "2"})]
    with error_message("cancelled on the server, at node 2"):
        render_on(comfy.url, graph)
    wrong = {"message": "Value not in list", "details": "file: 'x' not in []"}
    comfy.rejection = {
        "error": {"message": "invalid"},
        "node_errors": {"1": {"class_type": "LoadVideo", "errors": [wrong]}},
    }
    with error_message(r"rejects LoadVideo \(node 1\): Value not in list: file: 'x'"):
        render_on(comfy.url, graph)
    comfy.rejection = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": []}
    with error_message("rejects the graph: Prompt has no outputs$"):
        render_on(comfy.url, graph)
    graph.write_text(json.dumps(GRAPH).replace("LoadVideo", "ReelBrushNew"))
    with error_message(r"has no ReelBrushNew \(node 1\): install the node pack"):
        render_on(comfy.url, graph)


def test_a_server_that_is_not_there_is_one_sentence(graph):
    with error_message("no ComfyUI answers at http://127.0.0.1:1 "):
        render_on("127.0.0.1:1", graph)
    with error_message("is not a web address"):
        render_on("ftp://127.0.0.1", graph)


def test_control_characters_of_the_server_never_reach_the_terminal(comfy, graph, capsys):
    comfy.outputs = {"2": {"text": ["one\ntwo\x1b[2J\u202e"]}}
    render_on(comfy.url, graph)
    assert capsys.readouterr().out == "one\ntwo [2J\n"
    comfy.events = [
        ("execution_error", {"node_id": "2", "node_type": "\x1b]0;x", "exception_message": "a\rb"})
    ]
    with error_message(r"^\]0;x \(node 2\): a b$"):
        render_on(comfy.url, graph)


@pytest.mark.parametrize("name", ["", "../v.mp4", "/etc/passwd", ".bashrc", "a\x1b.mp4", "a/b.mp4"])
def test_the_server_does_not_choose_the_folder_of_a_result(comfy, graph, home, name):
    comfy.outputs["2"]["images"][0]["filename"] = name
    with error_message("is not accepted"):
        render_on(comfy.url, graph)
    comfy.outputs["2"]["images"][0] |= {"filename": "v.mp4", "subfolder": "../.."}
    with error_message("leaves the server folder"):
        render_on(comfy.url, graph)
    assert not results(home)


def test_a_download_that_breaks_off_leaves_no_file(comfy, graph, home, monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_TIME", 1)

    def cut(body):
        return web.Response(body=body, headers={"Content-Length": "100"})

    comfy.view = cut
    with error_message("no ComfyUI answers|incomplete"):
        render_on(comfy.url, graph)
    assert not results(home)


def test_answers_downloads_and_messages_are_limited(comfy, graph, home, monkeypatch):
    monkeypatch.setattr(connection, "MAX_DOWNLOAD", 4)
    with error_message("v_00001_.mp4 has more than"):
        render_on(comfy.url, graph)
    assert not results(home)
    monkeypatch.setattr(connection, "MAX_MESSAGE", 8)
    with error_message("closed the connection"):
        render_on(comfy.url, graph)
    monkeypatch.setattr(connection, "MAX_ANSWER", 8)
    with error_message("answer has more than"):
        render_on(comfy.url, graph)


def test_an_answer_that_is_not_json_is_an_error_message(comfy, graph):
    with error_message("is it a ComfyUI"):
        render_on(comfy.url + "/view?", graph)


def test_ctrl_c_cancels_the_run_on_the_server(comfy, graph, monkeypatch):
    monkeypatch.setattr(server_run, "QUIET", 600)  # the run does not end by itself
    comfy.events = [("execution_start", {})]
    comfy.on_prompt = lambda: threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        render_on(comfy.url, graph)
    assert json.loads(comfy.got("/queue")[0]) == {"delete": ["run-7"]}
    assert json.loads(comfy.got("/interrupt")[0]) == {"prompt_id": "run-7"}


def test_a_run_that_takes_too_long_is_cancelled(comfy, graph, monkeypatch):
    monkeypatch.setattr(server_run, "MAX_RUN", 0.3)
    comfy.events = []
    with error_message("the run took more than"):
        render_on(comfy.url, graph)
    assert comfy.got("/interrupt")


def test_the_history_is_asked_when_messages_are_lost(comfy, graph, monkeypatch):
    monkeypatch.setattr(server_run, "QUIET", 0.1)
    comfy.events = []
    assert len(render_on(comfy.url, graph)) == 1
    comfy.record = {
        "status_str": "error",
        "messages": [["execution_error", {"node_id": "2", "node_type": "S", "exception_message": "late"}]],
    }
    with error_message(r"S \(node 2\): late"):
        render_on(comfy.url, graph)
    comfy.outputs, comfy.queued = None, False
    with error_message("no longer has this run"):
        render_on(comfy.url, graph)


def test_without_aiohttp_the_message_says_how_to_install_it(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with error_message("--server needs aiohttp: install it with `pip install aiohttp`"):
        render_on("http://127.0.0.1:1", graph)
