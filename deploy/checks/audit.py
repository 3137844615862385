"""Known vulnerabilities of what the lock files pin. An audit that could not ask is no clean one, and says so.

Exit status: 0 nothing is known, 1 something is, 3 it could not be asked.
"""

import json
import subprocess
import sys


def main(*locks: str) -> int:
    """Audit each lock file by its pins alone."""
    return max(audit(lock) for lock in locks)


def audit(lock: str) -> int:
    """Audit one, and print what was found."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner=off",
    ]
    done = subprocess.run(
        [*command, "--format=json", f"--requirement={lock}"], capture_output=True, text=True, check=False
    )
    if not done.stdout.startswith("{"):
        print(f"{lock}: NOT AUDITED: {done.stderr.strip().splitlines()[-1]}")
        return 3
    pins = json.loads(done.stdout)["dependencies"]
    for pin in pins:
        for found in pin.get("vulns", []):
            print(f"{lock}: {pin['name']} {pin['version']}: {found['id']}, mended in {found['fix_versions']}")
    unasked = [pin["name"] for pin in pins if "skip_reason" in pin]
    if unasked:
        print(f"{lock}: NOT AUDITED: the service knew nothing of {len(unasked)} of {len(pins)} packages")
        return 3
    vulnerable = sum(1 for pin in pins if pin["vulns"])
    print(f"{lock}: {len(pins)} packages, {vulnerable} with known vulnerabilities")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
