# Sourced by tools/test, tools/check, tools/demo and .ci/run: makes .venv fit this checkout.
#
# Leaves the shell in the checkout's root with $root and $python set. Needs Python 3.11+ (named by
# $PYTHON, else found) and a package index. Mailstrom is installed as its built wheel, never
# editable, so that what is tested is what users get; it is built anew when a source changed, and
# dependencies are installed anew when pyproject.toml's lists changed.
# shellcheck shell=sh

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P) || exit 1
cd "$root" || exit 1
venv=$root/.venv
python=$venv/bin/python

# what the caller's shell says about Python must not reach the checkout's own
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

mailstrom_find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "tools: Python 3.11 or newer is needed; install it, or name it with PYTHON=/path/python" >&2
    return 1
}

mailstrom_make_venv() {
    if [ -x "$python" ] && "$python" -c 'import pip' 2>/dev/null; then
        return 0
    fi
    base=$(mailstrom_find_python) || return 1
    echo "tools: making .venv with $base" >&2
    if ! "$base" -m venv --clear "$venv" >&2; then
        echo "tools: $base cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
        return 1
    fi
}

# Prints two digests, of the dependency lists and of everything that goes into the wheel.
mailstrom_digests() {
    "$python" -P - <<'PYTHON'
import hashlib, pathlib, sys, tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text(encoding="utf-8"))
lists = (sys.version, project["project"]["dependencies"], project["dependency-groups"]["dev"])
wheel = hashlib.blake2b(digest_size=16)
for name in ("pyproject.toml", "README.md", "LICENSE", "mailstrom", "workers"):
    top = pathlib.Path(name)
    files = [top] if top.is_file() else sorted(top.rglob("*"))
    for file in files:
        if file.is_file() and file.suffix != ".pyc":
            data = file.read_bytes()
            wheel.update(f"{file.as_posix()}\0{len(data)}\0".encode() + data)
print(hashlib.blake2b(repr(lists).encode(), digest_size=16).hexdigest(), wheel.hexdigest())
PYTHON
}

mailstrom_install_dependencies() {
    echo "tools: installing dependencies" >&2
    # pip 23 has no --group
    "$python" -P -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print("\n".join(project["project"]["dependencies"] + project["dependency-groups"]["dev"]))
' >"$venv/requirements.txt" &&
        "$python" -P -m pip install --quiet --requirement "$venv/requirements.txt" >&2
}

mailstrom_install_wheel() {
    echo "tools: building and installing the wheel" >&2
    rm -rf "$venv/wheels"
    if ! "$python" -P -m hatchling build -t wheel -d "$venv/wheels" >"$venv/build.log" 2>&1; then
        cat "$venv/build.log" >&2
        return 1
    fi
    "$python" -P -m pip uninstall --quiet --yes mailstrom >/dev/null 2>&1
    "$python" -P -m pip install --quiet --no-deps --no-index "$venv"/wheels/mailstrom-*.whl >&2
}

# Stamps are written last, so that an interrupted set-up is done again.
mailstrom_fit() {
    mailstrom_make_venv || return 1
    digests=$(mailstrom_digests) || return 1
    if [ "$(cat "$venv/dependencies.stamp" 2>/dev/null)" != "${digests% *}" ]; then
        rm -f "$venv/dependencies.stamp"
        mailstrom_install_dependencies || return 1
        echo "${digests% *}" >"$venv/dependencies.stamp"
    fi
    if [ "$(cat "$venv/wheel.stamp" 2>/dev/null)" != "${digests#* }" ]; then
        rm -f "$venv/wheel.stamp"
        mailstrom_install_wheel || return 1
        echo "${digests#* }" >"$venv/wheel.stamp"
    fi
}

# Two tools started at once must not install into one another's .venv; the lock lies beside it,
# because making .venv clears it.
if command -v flock >/dev/null 2>&1; then
    mkdir -p "$root/.cache" || exit 1
    exec 9>"$root/.cache/setup.lock" || exit 1
    flock 9 || exit 1
    mailstrom_fit || exit 1
    exec 9>&-
else
    mailstrom_fit || exit 1
fi
export PATH="$venv/bin:$PATH"
