"""Known vulnerabilities of pinned distributions: `python .ci/audit.py --pip-audit PROGRAM constraints.txt …`.

pip-audit asks a vulnerability service about every pin. Exit code 0: none but those in accepted.toml, or "SKIPPED" with
the reason where no service answers (with --required: 1); 1: a vulnerability; 2: the audit itself failed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ACCEPTED = Path(__file__).with_name("accepted.toml")
SERVICES = {"osv": "OSV", "pypi": "PyPI"}
UNREACHED = re.compile(
    r"^(requests\.exceptions\.\w+|pip_audit\._service\.interface\.\w+|urllib3\.exceptions\.\w+|json\.\S*JSONDecodeError)\b.*"
    r"|^.*your network may be blocking this service.*",
    re.MULTILINE,
)
"""How pip-audit ends when a service does not answer, or not as one."""


class UnreachedError(Exception):
    """A service gave no answer; the message is the reason."""


def pins(paths: list[Path]) -> list[str]:
    """`name==version` of every line of these constraints files, whatever its marker."""
    lines = (line.partition("#")[0].strip() for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    found = (Requirement(line) for line in lines if line)
    return sorted({f"{each.name}{each.specifier}" for each in found})


def ask(program: Path, pinned: list[str], options: list[str], timeout: int) -> list[dict[str, Any]]:
    """What pip-audit says of each pin: its `name`, `version` and `vulns`, or a `skip_reason`.

    Raises:
        UnreachedError: the service does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        pending, found = [pinned], []
        while pending:  # a name with two versions (one in each file) is asked about in two calls
            now, later, names = [], [], set()
            for pin in pending.pop():
                name = pin.partition("==")[0]
                (later if name in names else now).append(pin)
                names.add(name)
            if later:
                pending.append(later)
            listed = Path(folder, "pins.txt")
            listed.write_text("\n".join(now))
            command = [program, "--no-deps", "--disable-pip", "-r", listed, "-f", "json", "--progress-spinner", "off"]
            command += ["--timeout", str(timeout), "--cache-dir", folder, *options]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20 * timeout)
            except subprocess.TimeoutExpired:
                raise UnreachedError(f"no end after {20 * timeout} s") from None
            found += _answer(done)
    return found


def _answer(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reasons = [match.group() for match in UNREACHED.finditer(done.stderr)]
        if reasons:
            raise UnreachedError(reasons[-1][:300]) from None
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        print(f"audit: pip-audit failed (exit code {done.returncode}), as above", file=sys.stderr)
        sys.exit(2)
    return dependencies


def accepted(vulnerable: dict[str, Any], vulnerability: dict[str, Any], entries: list[dict[str, str]]) -> str | None:
    """Why a vulnerability is accepted; None: it is not."""
    for entry in entries:
        allowed = SpecifierSet(entry["range"])
        concerned = entry["package"] == vulnerable["name"] and vulnerable["version"] in allowed
        if concerned and not any(version in allowed for version in vulnerability["fix_versions"]):
            return f"{entry['required_by']} requires {entry['package']}{allowed}; {entry['reason']}"
    return None


def main() -> int:
    """Audit, print, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="constraints files")
    parser.add_argument("--pip-audit", type=Path, required=True, help="the program")
    parser.add_argument("--service", action="append", choices=SERVICES, help="default: OSV, then PyPI")
    parser.add_argument("--osv-url", help="another address of OSV's query interface")
    parser.add_argument("--timeout", type=int, default=15, help="seconds to wait for one answer; default 15")
    parser.add_argument("--required", action="store_true", help="fail where no service answers")
    given = parser.parse_args()

    pinned, reasons = pins(given.files), []
    for service in given.service or SERVICES:
        options = ["--vulnerability-service", service, *(["--osv-url", given.osv_url] if given.osv_url else [])]
        try:
            if not given.pip_audit.exists():
                raise UnreachedError(f"pip-audit could not be installed: no {given.pip_audit}")
            answers = ask(given.pip_audit, pinned, options, given.timeout)
            unknown = [each["name"] for each in answers if "skip_reason" in each]
            known = [each for each in answers if "skip_reason" not in each]
            code = report(known, SERVICES[service]) if known else 0
            if code or not unknown:
                return code
            raise UnreachedError(f"it knows {len(known)} of {len(answers)} pins, not {', '.join(unknown[:3])}, …")
        except UnreachedError as reason:
            reasons.append(f"{SERVICES[service]}: {reason}")
    print(f"audit: SKIPPED, no vulnerability service answered about all {len(pinned)} pins:")
    print(*(f"  {reason}" for reason in reasons), sep="\n")
    return 1 if given.required else 0


def report(answers: list[dict[str, Any]], service: str) -> int:
    """Print the vulnerabilities; 1 where one is not accepted."""
    entries = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["accepted"]
    lines: dict[str, None] = {}
    failed = False
    for each in answers:
        for found in each.get("vulns", []):
            why = accepted(each, found, entries)
            failed |= why is None
            names = ", ".join([found["id"], *found.get("aliases", [])])
            fixed = f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "not mended yet"
            word = f"accepted: {why}" if why else "VULNERABLE: raise the pin (make constraints)"
            lines[f"  {each['name']} {each['version']}: {names}; {fixed}; {word}"] = None
    print(f"audit: {len(lines)} known vulnerabilities in {len(answers)} pins, says {service}", *lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
