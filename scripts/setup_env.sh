#!/usr/bin/env bash
# Makes .venv with what requirements.txt pins, and compiles the extension in place. What is done
# already is left alone: a second call returns at once and needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=.venv/bin/python
installed=.venv/requirements.installed # a copy of the requirements.txt that was installed

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

make_venv() {
    command -v python3 >/dev/null || fail "python3 is not installed; Python 3.10 or newer is needed"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$(python3 --version) is too old; Python 3.10 or newer is needed as python3"
    echo "making .venv with $(python3 --version)"
    python3 -m venv --clear .venv ||
        fail "python3 cannot make .venv; on Debian and Ubuntu: apt install python3-venv"
}

# With the stamp in place a running interpreter is proof enough; before that, pip must run as well.
if [[ -f $installed ]]; then
    "$python" -c '' 2>/dev/null || make_venv
else
    "$python" -m pip --version >/dev/null 2>&1 || make_venv
fi

suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
stale=()
for source in im2mesh/ext/*.pyx; do
    [[ ${source%.pyx}$suffix -nt $source ]] || stale+=("$source")
done

if ((${#stale[@]})); then # before the long downloads
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        fail "no C++ compiler found; on Debian and Ubuntu: apt install g++"
    include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [[ -f $include/Python.h ]] ||
        fail "$include/Python.h is missing; on Debian and Ubuntu: apt install python3-dev"
fi

if ! cmp -s requirements.txt "$installed"; then
    pip=("$python" -m pip install --quiet --disable-pip-version-check)
    echo "installing PyTorch and the other packages of requirements.txt (once, some minutes)"
    "${pip[@]}" "$(grep '^torch==' requirements.txt)" && "${pip[@]}" -r requirements.txt ||
        fail "pip could not install requirements.txt, see above; the next call tries again"
    cp requirements.txt "$installed"
fi

if ((${#stale[@]})); then
    echo "compiling ${stale[*]}"
    mkdir -p build
    "$python" setup.py --quiet build_ext --inplace >build/build_ext.log 2>&1 || {
        tail -n 30 build/build_ext.log >&2
        fail "the extension does not compile; the whole output is in build/build_ext.log"
    }
fi
