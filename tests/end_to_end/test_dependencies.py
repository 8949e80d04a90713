"""The pinned versions are those that we ask for, all that we install, and audited."""

import json
import subprocess
import sys
import threading
import tomllib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ACCEPTED = tomllib.loads((ROOT / ".ci" / "accepted.toml").read_text())["accepted"]
MADE_BY_MAKE = Path(sys.prefix, ".dev").exists()
PIP_AUDIT = Path(sys.prefix, "audit", "bin", "pip-audit")


def requirements(name):
    lines = (ROOT / name).read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(name):
    """Version by normal name."""
    return {
        canonicalize_name(each.name): Version(str(each.specifier).removeprefix("==")) for each in requirements(name)
    }


PINS, AUDIT_PINS = pins("constraints.txt"), pins("constraints-audit.txt")


def asked_for():
    """What pyproject.toml names, in any extra."""
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for line in lines:
            if canonicalize_name(Requirement(line).name) != "robustbench-meta":
                yield pytest.param(Requirement(line), id=f"{extra}: {line}")


def installed_for(wanted):
    """Every distribution, transitive ones too, that these requirements bring to the running environment."""
    waiting, seen = [(canonicalize_name(each.name), extra) for each in wanted for extra in ("", *each.extras)], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            lines = []
        for line in lines:
            each = Requirement(line)
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(each.name), more) for more in ("", *each.extras)]
    return {name for name, _ in seen}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-audit.txt", "constraints-docs.txt"])
def test_a_constraints_file_pins_each_distribution_once_and_exactly(name):
    found = requirements(name)
    assert [str(each.specifier)[:2] for each in found] == ["=="] * len(found)
    assert [each.name for each in found] == sorted({canonicalize_name(each.name) for each in found})
    assert not [each for each in found if each.url or each.extras]


@pytest.mark.parametrize("wanted", list(asked_for()))
def test_the_pins_are_within_what_we_ask_for(wanted):
    assert PINS[canonicalize_name(wanted.name)] in wanted.specifier


def test_torch_is_pinned_without_a_build():
    assert PINS["torch"].local is None
    assert Version(f"{PINS['torch']}+cpu") in SpecifierSet(f"=={PINS['torch']}")


def test_the_pins_cover_all_that_the_dev_environment_has():
    wanted = [parameter.values[0] for parameter in asked_for() if not parameter.id.startswith("bench")]
    there = {name for name in installed_for(wanted) if not name.startswith(("nvidia-", "cuda-")) and name != "triton"}
    assert len(there) > len(wanted)
    assert there <= PINS.keys(), f"`make constraints` pins {there - PINS.keys()}"
    if MADE_BY_MAKE:
        installed = {name: Version(metadata.version(name)).public for name in there}
        assert installed == {name: str(PINS[name]) for name in there}


def test_make_and_the_readme_install_the_pinned_versions():
    makefile = (ROOT / "Makefile").read_text()
    lines = [line for line in makefile.splitlines() if "pip install" in line and "packaging" not in line]
    assert len(lines) == 3
    assert all("--constraint" in line for line in lines)
    assert "pip install -c constraints.txt ." in (ROOT / "README.md").read_text()


# -- known vulnerabilities -------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ACCEPTED, ids=lambda entry: entry["package"])
def test_what_the_audit_accepts_is_forced_by_the_named_dependency(entry):
    required = {canonicalize_name(Requirement(line).name): line for line in metadata.requires(entry["required_by"])}
    assert Requirement(required[entry["package"]]).specifier == SpecifierSet(entry["range"])
    assert PINS[entry["package"]] in SpecifierSet(entry["range"])
    assert entry["reason"].strip()


@contextmanager
def service(answer, status=200, content="application/json"):
    """A vulnerability service on this machine that speaks OSV's protocol; `answer` gets a name and a version."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = answer(query["package"]["name"], query["version"])
            body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


def vulnerability(name, fixed):
    """In OSV's schema 1.x."""
    events = [{"introduced": "0"}, *([{"fixed": fixed}] if fixed else [])]
    affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}]
    return {"id": f"TEST-{name}", "summary": "for a test", "affected": affected}


def audit(folder, url, lines, *options, program=PIP_AUDIT):
    listed = folder / "constraints.txt"
    listed.write_text("\n".join(lines))
    script = ROOT / ".ci" / "audit.py"
    command = [sys.executable, script, "--pip-audit", program, "--service", "osv", "--osv-url", url, "--timeout", "2"]
    return subprocess.run([*command, *options, listed], capture_output=True, text=True, check=False)


needs_pip_audit = pytest.mark.skipif(not PIP_AUDIT.exists(), reason="no pip-audit: `make audit` installs it")
URLLIB3 = f"urllib3=={PINS['urllib3']}"
CASES = {
    "nothing known": ("rich", None, 0, "0 known vulnerabilities in 2 pins"),
    "a vulnerability that a newer version mends": (
        "jinja2",
        "99",
        1,
        "jinja2 3.1.0: TEST-jinja2; mended in 99; VULNER",
    ),
    "one that none mends": ("jinja2", "", 1, "TEST-jinja2; not mended yet; VULNERABLE"),
    "one that a forced range keeps": ("urllib3", "2.6.3", 0, "mended in 2.6.3; accepted: requests requires urllib3"),
    "one that is mended within the forced range": ("urllib3", "1.26.99", 1, "mended in 1.26.99; VULNERABLE"),
}


@needs_pip_audit
@pytest.mark.parametrize(("name", "fixed", "code", "said"), CASES.values(), ids=CASES)
def test_the_audit_fails_on_what_can_be_mended(tmp_path, name, fixed, code, said):
    def answer(asked, _):
        return {"vulns": [vulnerability(name, fixed)]} if asked == name and fixed is not None else {}

    with service(answer) as url:
        done = audit(tmp_path, url, ["jinja2==3.1.0 ; sys_platform == 'win32'", "# a comment", URLLIB3])
    assert (done.returncode, done.stderr) == (code, "")
    assert said in done.stdout


@needs_pip_audit
def test_the_audit_sees_both_versions_of_a_name(tmp_path):
    def answer(_, version):
        return {"vulns": [vulnerability("idna", "3.7")]} if version == "2.10" else {}

    with service(answer) as url:
        done = audit(tmp_path, url, ["idna==3.20", "idna==2.10"])
    assert done.returncode == 0
    assert "1 known vulnerabilities in 2 pins" in done.stdout
    assert "idna 2.10: TEST-idna" in done.stdout


SILENT = {
    "refuses": ({"status": 503}, "ServiceError"),
    "shows a web page": ({"content": "text/html"}, "JSONDecodeError"),
}


@needs_pip_audit
@pytest.mark.parametrize(("how", "reason"), SILENT.values(), ids=SILENT)
def test_the_audit_is_skipped_with_its_reason_where_the_service_is_none(tmp_path, how, reason):
    with service(lambda *_: "<html>log in</html>", **how) as url:
        done = audit(tmp_path, url, [URLLIB3])
        required = audit(tmp_path, url, [URLLIB3], "--required")
    assert (done.returncode, required.returncode) == (0, 1)
    assert "audit: SKIPPED, no vulnerability service answered about all 1 pins:\n  OSV: " in done.stdout
    assert reason in done.stdout


@needs_pip_audit
def test_the_audit_is_skipped_without_network(tmp_path):
    done = audit(tmp_path, "http://127.0.0.1:9/query", [URLLIB3])
    assert done.returncode == 0
    assert "SKIPPED" in done.stdout
    assert "ConnectionError" in done.stdout


@needs_pip_audit
def test_the_audit_is_skipped_where_the_service_hangs(tmp_path):
    held = threading.Event()
    with service(lambda *_: held.wait(30) and {}) as url:
        done = audit(tmp_path, url, [URLLIB3])
        held.set()
    assert done.returncode == 0
    assert "SKIPPED" in done.stdout
    assert "Timeout" in done.stdout


def test_the_audit_is_skipped_where_pip_audit_could_not_be_installed(tmp_path):
    done = audit(tmp_path, "http://127.0.0.1:9/query", [URLLIB3], program=tmp_path / "none")
    assert done.returncode == 0
    assert "SKIPPED" in done.stdout
    assert "pip-audit could not be installed" in done.stdout


@needs_pip_audit
def test_a_mistake_of_ours_is_no_reason_to_skip(tmp_path):
    done = audit(tmp_path, "http://127.0.0.1:9/query", ["urllib3>=1"])
    assert done.returncode == 2
    assert "pip-audit failed" in done.stderr
