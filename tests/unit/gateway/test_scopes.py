"""Who may call what: a line for every route, and what a key may not see is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts

import fmplex_gateway.app
from tests.unit.gateway.site import Site, site, spec

MINE = ["mine*"]
KEYS = {
    "infer": {"key": "key-to-infer", "scopes": ["infer"], "models": MINE},
    "deploy": {"key": "key-to-deploy", "scopes": ["deploy"], "models": MINE},
    "both": {"key": "key-for-both", "scopes": ["infer", "deploy"], "models": MINE},
    "admin": {"key": "key-of-an-admin", "scopes": ["admin"]},
    "everything": {"key": "key-to-infer-all", "scopes": ["infer"], "models": ["team-*", "*"]},
}
GATEWAY = {"keys": [{"name": name, **key} for name, key in KEYS.items()]}
SECRETS = {name: str(key["key"]) for name, key in KEYS.items()}

NO_FILE = "file-0123456789abcdef01234567"
NO_BATCH = "batch_" + "0" * 24
NO_JOB = "ftjob-" + "0" * 24
Route = tuple[str, str]
# What a call is answered that has got through, but for its body or the state of the fleet: `200` with a body that is right.
# A key with scope infer, of a vFM that it may use and of another; one with scope deploy, likewise; an admin; nobody's.
MATRIX: dict[Route, tuple[int, int, int, int, int, int]] = {
    #                                       infer     deploy    admin nobody
    ("POST", "/v1/vfms/{name}/infer"):     (422, 404, 403, 403, 422, 401),
    ("POST", "/v1/chat/completions"):      (400, 404, 403, 403, 400, 401),
    ("POST", "/v1/completions"):           (400, 404, 403, 403, 400, 401),
    ("POST", "/v1/embeddings"):            (400, 404, 403, 403, 400, 401),
    ("GET", "/v1/models"):                 (200, 200, 403, 403, 200, 401),
    ("GET", "/v1/models/{name}"):          (200, 404, 403, 403, 200, 401),
    ("POST", "/v1/files"):                 (400, 400, 400, 400, 400, 401),
    ("GET", "/v1/files"):                  (200, 200, 200, 200, 200, 401),
    ("GET", "/v1/files/{file_id}"):        (404, 404, 404, 404, 404, 401),
    ("GET", "/v1/files/{file_id}/content"): (404, 404, 404, 404, 404, 401),
    ("DELETE", "/v1/files/{file_id}"):     (404, 404, 404, 404, 404, 401),
    ("POST", "/v1/batches"):               (400, 400, 403, 403, 400, 401),
    ("GET", "/v1/batches"):                (200, 200, 403, 403, 200, 401),
    ("GET", "/v1/batches/{batch_id}"):     (404, 404, 403, 403, 404, 401),
    ("POST", "/v1/batches/{batch_id}/cancel"): (404, 404, 403, 403, 404, 401),
    ("POST", "/v1/fine_tuning/jobs"):      (403, 403, 400, 400, 400, 401),
    ("GET", "/v1/fine_tuning/jobs"):       (403, 403, 200, 200, 200, 401),
    ("GET", "/v1/fine_tuning/jobs/{job}"): (403, 403, 404, 404, 404, 401),
    ("POST", "/v1/fine_tuning/jobs/{job}/cancel"): (403, 403, 404, 404, 404, 401),
    ("POST", "/v1/fine_tuning/jobs/{job}/pause"): (403, 403, 404, 404, 404, 401),
    ("POST", "/v1/fine_tuning/jobs/{job}/resume"): (403, 403, 404, 404, 404, 401),
    ("GET", "/v1/fine_tuning/jobs/{job}/events"): (403, 403, 404, 404, 404, 401),
    ("GET", "/v1/fine_tuning/jobs/{job}/checkpoints"): (403, 403, 404, 404, 404, 401),
    ("GET", "/v1/vfms"):                   (200, 200, 200, 200, 200, 401),
    ("GET", "/v1/vfms/{name}"):            (200, 404, 200, 404, 200, 401),
    ("POST", "/v1/vfms"):                  (403, 403, 422, 403, 422, 401),
    ("PATCH", "/v1/vfms/{name}"):          (403, 403, 200, 404, 200, 401),
    ("POST", "/v1/vfms/{name}/versions"):  (403, 403, 200, 404, 200, 401),
    ("POST", "/v1/vfms/{name}/rollback"):  (403, 403, 409, 404, 409, 401),
    ("DELETE", "/v1/vfms/{name}"):         (403, 403, 200, 404, 200, 401),
    ("POST", "/v1/artifacts/prune"):       (403, 403, 403, 403, 200, 401),
    ("GET", "/metrics"):                   (403, 403, 403, 403, 200, 401),
    ("GET", "/docs"):                      (200, 200, 200, 200, 200, 401),
    ("GET", "/redoc"):                     (200, 200, 200, 200, 200, 401),
    ("GET", "/openapi.json"):              (200, 200, 200, 200, 200, 401),
    ("GET", "/healthz"):                   (200, 200, 200, 200, 200, 200),
    ("GET", "/readyz"):                    (503, 503, 503, 503, 503, 503),
}  # fmt: skip
BODIES: dict[Route, Callable[[str], Any]] = {
    ("POST", "/v1/vfms/{name}/infer"): lambda vfm: {"inputs": []},
    ("POST", "/v1/chat/completions"): lambda vfm: {"model": vfm, "messages": [{"role": "user", "content": "x"}]},
    ("POST", "/v1/completions"): lambda vfm: {"model": vfm, "prompt": "x"},
    ("POST", "/v1/embeddings"): lambda vfm: {"model": vfm, "input": []},
    ("POST", "/v1/vfms"): lambda vfm: {"spec": {"name": vfm, "backbone": "nowhere", "head": {"kind": "embedding"}}},
    ("PATCH", "/v1/vfms/{name}"): lambda vfm: {"weight": 2},
    ("POST", "/v1/vfms/{name}/versions"): lambda vfm: {"spec": spec(vfm).model_dump(mode="json")},
    ("POST", "/v1/vfms/{name}/rollback"): lambda vfm: {},
}


async def call(place: Site, route: Route, vfm: str, who: str | None) -> httpx.Response:
    """Call a route for a vFM. What the call removes is there again afterwards."""
    method, path = route
    body = BODIES[route](vfm) if route in BODIES else None
    response = await place.ask(
        method, path.format(name=vfm, file_id=NO_FILE, batch_id=NO_BATCH, job=NO_JOB), SECRETS.get(who or ""), body
    )
    if method == "DELETE" and response.is_success:
        await place.serve(spec(vfm))
    return response


@pytest.mark.parametrize("route", MATRIX, ids=" ".join)
async def test_scopes_and_routes(tmp_path: Path, route: Route) -> None:
    infer, infer_other, deploy, deploy_other, admin, nobody = MATRIX[route]
    wanted = {
        ("infer", "mine"): infer, ("infer", "theirs"): infer_other,
        ("deploy", "mine"): deploy, ("deploy", "theirs"): deploy_other,
        # Each scope as if the other were not there.
        ("both", "mine"): deploy if infer == 403 else infer,
        ("both", "theirs"): deploy_other if infer_other == 403 else infer_other,
        ("admin", "mine"): admin, ("admin", "theirs"): admin,
        (None, "mine"): nobody, (None, "theirs"): nobody,
    }  # fmt: skip
    got = {}
    async with site(tmp_path, GATEWAY) as place:
        await place.serve(spec("mine"), spec("theirs"))
        for who, vfm in wanted:
            response = await call(place, route, vfm, who)
            got[who, vfm] = response.status_code
            assert not any(secret in response.text for secret in SECRETS.values())
    assert got == wanted


async def test_no_route_is_without_a_line(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        found = iter_route_contexts(place.app.routes)
        there = {(method, route.path) for route in found for method in route.methods or () if method != "HEAD"}
    assert there == MATRIX.keys()


def test_a_route_that_does_not_say_who_may_call_it_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    router = APIRouter()

    @router.get("/v1/new")
    async def new() -> None: ...

    monkeypatch.setattr(fmplex_gateway.app, "openai", SimpleNamespace(router=router))
    with pytest.raises(RuntimeError, match="/v1/new does not say who may call it"):
        fmplex_gateway.app.create_app(lambda: None, SimpleNamespace(), SimpleNamespace(), [])


# --- 401, 403 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", "key-to-infer", "Basic key-to-infer",
        "Bearer key-to-infe", "Bearer key-to-infer-", "Bearer KEY-TO-INFER", "Bearer \xe9\xe9\xe9\xe9\xe9\xe9\xe9\xe9",
    ],
)  # fmt: skip
async def test_a_wrong_key_is_nobodys(tmp_path: Path, header: str) -> None:
    async with site(tmp_path, GATEWAY) as place:
        response = await place.http.get("/v1/vfms", headers={"Authorization": header.encode("latin-1")})
    assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_paths_that_are_not_there_ask_for_a_key_too(tmp_path: Path) -> None:
    async with site(tmp_path, GATEWAY) as place:
        for path in ("/", "/v1/nothing", "/healthz/", "/v1//vfms"):
            assert (await place.ask("GET", path)).status_code == 401, path
        assert (await place.ask("GET", "/v1/nothing", SECRETS["infer"])).json()["error"]["code"] == "no_route"


async def test_a_refusal_names_the_scope_and_the_key(tmp_path: Path) -> None:
    async with site(tmp_path, GATEWAY) as place:
        error = (await place.ask("DELETE", "/v1/vfms/mine", SECRETS["infer"])).json()["error"]
        assert (error["code"], error["message"]) == ("forbidden", "this needs scope deploy; the key 'infer' has infer")
        error = (await place.ask("POST", "/v1/artifacts/prune", SECRETS["both"])).json()["error"]
        assert error["message"] == "this needs scope admin; the key 'both' has deploy, infer"


async def test_the_scope_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    async def sent() -> Any:
        raise AssertionError("the body was read")
        yield b""

    async with site(tmp_path, GATEWAY) as place:
        headers = {"Authorization": f"Bearer {SECRETS['infer']}"}
        response = await place.http.post("/v1/vfms", headers=headers, content=sent())
    assert response.status_code == 403


async def test_a_name_that_a_key_may_not_give_is_told_with_those_it_may(tmp_path: Path) -> None:
    async with site(tmp_path, GATEWAY) as place:
        response = await call(place, ("POST", "/v1/vfms"), "theirs", "deploy")
        assert not (tmp_path / "store").exists(), "nothing is stored"
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["field"]) == (403, "forbidden", "name")
    assert error["message"] == "'theirs' is no name for the key 'deploy', which may use mine*"


async def test_without_keys_everybody_may_do_everything(tmp_path: Path) -> None:
    async with site(tmp_path) as place:
        await place.serve(spec("mine"))
        for route, (*_, admin, _) in MATRIX.items():
            for header in ({}, {"Authorization": "Bearer unused"}):
                method, path = route
                body = BODIES[route]("mine") if route in BODIES else None
                response = await place.http.request(
                    method,
                    path.format(name="mine", file_id=NO_FILE, batch_id=NO_BATCH, job=NO_JOB),
                    headers=header,
                    json=body,
                )
                assert response.status_code == admin, (route, header)
                if method == "DELETE" and response.is_success:
                    await place.serve(spec("mine"))


# --- what a key may not use is not there ------------------------------------------------------------------------------

NAMING = [route for route, (_, other, *_) in MATRIX.items() if other == 404 and "_id}" not in route[1]]
CHANGING = [
    route
    for route, (_, _, _, other, *_) in MATRIX.items()
    if other == 404 and "_id}" not in route[1] and "{job}" not in route[1]
]


@pytest.mark.parametrize(
    ("who", "route"),
    [*(("infer", route) for route in NAMING), *(("deploy", route) for route in CHANGING)],
    ids=lambda part: part if isinstance(part, str) else " ".join(part),
)
async def test_a_hidden_vfm_is_answered_like_one_that_is_not_there(tmp_path: Path, who: str, route: Route) -> None:
    async with site(tmp_path, GATEWAY) as place:
        await place.serve(spec("mine"), spec("theirs"))
        hidden = await call(place, route, "theirs", who)
        missing = await call(place, route, "nobody", who)
        never = await call(place, route, "mine-too", who)
    for response, name in ((hidden, "theirs"), (missing, "nobody"), (never, "mine-too")):
        assert response.status_code == 404
        ours = "/vfms" in route[1]
        assert response.json()["error"] == {
            "code": "unknown_vfm" if ours else "model_not_found",
            "message": f"there is no vFM {name!r}; `fmplex vfms` lists them",
            "type": "unknown_vfm" if ours else "invalid_request_error",
            "param": None,
        }
    assert sorted(hidden.headers) == sorted(missing.headers) == sorted(never.headers)


async def test_lists_show_and_count_what_a_key_may_use(tmp_path: Path) -> None:
    async def page(who: str, **query: Any) -> tuple[list[str], int]:
        headers = {"Authorization": f"Bearer {SECRETS[who]}"}
        answer = (await place.http.get("/v1/vfms", params=query, headers=headers)).json()
        return [v["name"] for v in answer["vfms"]], answer["total"]

    async with site(tmp_path, GATEWAY) as place:
        await place.serve(*(spec(name) for name in ("a", "mine-1", "mine-2", "n", "mine-3", "z")))
        assert await page("infer") == (["mine-1", "mine-2", "mine-3"], 3)
        assert await page("deploy", limit=2) == (["mine-1", "mine-2"], 3)
        assert await page("infer", limit=2, after="mine-2") == (["mine-3"], 3)
        assert await page("infer", match="*-1") == (["mine-1"], 1)
        assert await page("infer", match="a") == ([], 0)
        assert await page("admin", limit=1) == (["a"], 6)
        assert await page("everything", limit=1) == (["a"], 6)
        models = (await place.ask("GET", "/v1/models", SECRETS["infer"])).json()["data"]
        assert [model["id"] for model in models] == ["mine-1", "mine-2", "mine-3"]


PROMPTED = {"head": {"kind": "generation", "system": "SECRET A", "chat_template": "SECRET B {{ messages }}"}}
FRAMED = {
    "head": {"kind": "embedding"},
    "input": {"template": "SECRET C {text}", "pair_template": "SECRET D {text_pair}"},
}


@pytest.mark.parametrize("who", KEYS)
async def test_prompts_are_for_those_who_may_deploy(tmp_path: Path, who: str) -> None:
    shown = []
    async with site(tmp_path, GATEWAY) as place:
        await place.serve(spec("mine-bot", **PROMPTED), spec("mine-framed", **FRAMED))
        for path in ("/v1/vfms/mine-bot", "/v1/vfms/mine-framed", "/v1/vfms"):
            shown.append(await place.ask("GET", path, SECRETS[who]))
    bot, framed = (response.json() for response in shown[:2])
    if who in ("infer", "everything"):
        assert not any("SECRET" in response.text for response in shown)
        assert bot["head"].items() >= {"kind": "generation", "max_tokens": 256}.items()
        assert framed["input"] == {"max_tokens": None, "truncate": False, "token_ids": False}
    else:
        assert (bot["head"]["system"], framed["input"]["template"]) == ("SECRET A", "SECRET C {text}")
        assert shown[2].text.count("SECRET") == 4


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [[], ["metrics"], ["docs"], ["docs", "metrics"]])
async def test_pages_ask_for_a_key_unless_they_are_public(tmp_path: Path, public: list[str]) -> None:
    pages = {"/metrics": "metrics", "/docs": "docs", "/redoc": "docs", "/openapi.json": "docs"}
    async with site(tmp_path, GATEWAY | {"public": public}) as place:
        for path, name in pages.items():
            for key in (None, "a-wrong-key"):
                response = await place.ask("GET", path, key)
                assert response.status_code == (200 if name in public else 401), path
        assert (await place.ask("GET", "/v1/vfms")).status_code == 401


async def test_metrics_are_for_keys_that_may_use_every_vfm(tmp_path: Path) -> None:
    async with site(tmp_path, GATEWAY) as place:
        assert (await place.ask("GET", "/metrics", SECRETS["everything"])).status_code == 200
        error = (await place.ask("GET", "/metrics", SECRETS["both"])).json()["error"]
    assert error["message"] == "this names every vFM; the key 'both' may use mine* only"
