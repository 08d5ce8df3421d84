#!/usr/bin/env bash
# Downloads one of the published data sets and unpacks it.
#
#     bash scripts/download_data.sh dtu|nmr|shapenet [FOLDER]
#
#     dtu        0.5 GB   FOLDER/DTU           scans 65, 106 and 118
#     nmr         34 GB   FOLDER/NMR_Dataset   24 views of 64x64 pixels
#     shapenet   114 GB   FOLDER/ShapeNet      views, depth and the input images of Choy et al.
#
# FOLDER is the project's data by default. An interrupted download goes on where it stopped. An
# archive FOLDER/<name>.zip that is there already is not downloaded. The environment variable
# IM2MESH_DATA_URL names another server. Exit code: 0 when the data are there, else 2.
set -euo pipefail

published=https://s3.eu-central-1.amazonaws.com/avg-projects/differentiable_volumetric_rendering/data
server=${IM2MESH_DATA_URL:-$published}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

case ${1:-} in
dtu) name=DTU ;;
nmr) name=NMR_Dataset ;;
shapenet) name=ShapeNet ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ ${1:-} == --help ]] && exit
    fail "choose dtu, nmr or shapenet${1:+; there is no set called $1}"
    ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${2:-$root/data}
url=$server/$name.zip
target=$folder/$name
archive=$folder/$name.zip
part=$archive.part

command -v python3 >/dev/null || fail "python3 is not installed"
if [[ -f $target/.downloaded ]]; then
    echo "$target is complete already"
    exit
fi
[[ ! -e $target ]] || fail "$target exists and is not of this script's making: it stays as it is." \
    "Move it away, or choose another folder: bash scripts/download_data.sh $1 FOLDER"
mkdir -p "$folder" 2>/dev/null || fail "cannot make the folder $folder"

bytes() { if [[ -f $1 ]]; then wc -c <"$1"; else echo 0; fi; }

headers() {
    if command -v curl >/dev/null; then
        curl --silent --show-error --fail --location --head --connect-timeout 30 "$url"
    else
        wget --spider --server-response --tries=1 --timeout=30 "$url" 2>&1
    fi
}

fetch() { # into $part, from where it ends
    if command -v curl >/dev/null; then
        local bar=--silent
        [[ -t 2 ]] && bar=--progress-bar
        curl "$bar" --show-error --fail --location --continue-at - --output "$part" "$url"
    else
        wget --no-verbose --continue --output-document "$part" "$url"
    fi
}

download() {
    local size have free
    command -v curl >/dev/null || command -v wget >/dev/null ||
        fail "neither curl nor wget is installed"
    size=$(headers | tr -d '\r' |
        awk 'tolower($1) == "content-length:" { n = $2 } END { print n }') || size=
    [[ -n $size ]] || fail "$url cannot be had. Is there a network? If so, try again later. If the server
is gone for good, either put the archive from elsewhere at
    $archive
and run this again; or name a server that has $name.zip:
    IM2MESH_DATA_URL=https://SERVER/FOLDER bash scripts/download_data.sh $1
or go without: scripts/make_synthetic_dataset.py makes data of the same layout."
    have=$(bytes "$part")
    ((have <= size)) || fail "$part is larger than $url: it is another file. Delete it."
    # The unpacked files are about as large as the archive: pictures hardly shrink.
    free=$(($(df -Pk "$folder" | awk 'END { print $4 }') * 1024))
    ((free >= 2 * size - have)) || fail "$folder: $((free >> 20)) MiB are free, but" \
        "$(((2 * size - have) >> 20)) MiB are needed, for the archive and what is in it." \
        "Choose a folder on a larger disk: bash scripts/download_data.sh $1 FOLDER"
    if ((have < size)); then
        echo "downloading $url: $((size >> 20)) MiB, $((have >> 20)) of them are here"
        fetch || fail "the download stopped at $(($(bytes "$part") >> 20)) MiB, see above. The same" \
            "command goes on from there; if the server cannot do that, delete $part first"
    fi
    (($(bytes "$part") == size)) || fail "$part has $(bytes "$part") bytes, not $size as on the" \
        "server. The same command goes on with the rest"
    mv "$part" "$archive"
}

if [[ ! -f $archive ]]; then
    download "$1"
fi
python3 - "$archive" "$target" <<'PYTHON' || exit 2
"""Check an archive and unpack it, in full or not at all."""
import hashlib
import os
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

archive, target = map(Path, sys.argv[1:])
staging = target.with_name(f".{target.name}.unpacking")


def main():
    print(f"checking {archive}", flush=True)
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        while chunk := file.read(2**24):
            digest.update(chunk)
    print(f"sha256 {digest.hexdigest()} (none was published to compare with)", flush=True)
    with zipfile.ZipFile(archive) as zipped:
        entries = zipped.infolist()
        for entry in entries:
            refuse_escapes(entry)
        needed = sum(entry.file_size for entry in entries)
        if needed == 0:
            sys.exit(f"error: there is nothing in {archive}: delete it")
        free = shutil.disk_usage(archive.parent).free
        if free < needed:
            sys.exit(
                f"error: {archive.parent}: {free >> 20} MiB are free, but {needed >> 20} MiB are "
                "needed to unpack. Make room and run this again; the archive stays"
            )
        shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
        done = 0
        for entry in entries:
            zipped.extract(entry, staging)
            if 10 * (done + entry.file_size) // needed > 10 * done // needed:
                print(f"unpacked {100 * (done + entry.file_size) // needed}%", flush=True)
            done += entry.file_size
    # Some archives hold the files of the set, others the folder with them.
    inner = staging / target.name
    content = inner if os.listdir(staging) == [inner.name] else staging
    (content / ".downloaded").write_text(f"{archive.name} sha256 {digest.hexdigest()}\n")
    content.rename(target)
    shutil.rmtree(staging, ignore_errors=True)
    print(f"{target} is complete. {archive} is not needed any more")


def refuse_escapes(entry):
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or is_link:
        sys.exit(
            f"error: {archive} is refused, nothing was unpacked: its entry {entry.filename!r} may "
            "lead out of the folder. It is not the published archive: delete it"
        )


try:
    main()
except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as err:
    sys.exit(f"error: {archive} is damaged ({err}). Delete it and run this again")
except OSError as err:
    sys.exit(f"error: cannot unpack {archive} to {target}: {err}. The archive stays")
except KeyboardInterrupt:
    sys.exit("interrupted. The archive stays, the same command unpacks it")
finally:
    shutil.rmtree(staging, ignore_errors=True)
PYTHON
