#!/usr/bin/env bash
# Sets up everything the project needs, into .venv. Idempotent; does nothing when nothing changed.
#   RLCO_PYTHON   the Python 3.12 to use (default: searched)
#   RLCO_BROWSER  the Chromium or Chrome for the console's tests (default: searched, else installed); none: do without
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
stamp=$venv/.rlco-setup

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
die() { printf '\033[1;31m[setup] error:\033[0m %s\n' "$*" >&2; exit 1; }

# What the installation depends on: requirements, this script, and every file that colcon installs.
fingerprint() {
    { cat requirements.txt requirements-ros.txt scripts/setup.sh ros2_ws/src/*/setup.py ros2_ws/src/*/package.xml
      find ros2_ws/src/*/config ros2_ws/src/*/launch ros2_ws/src/*/layouts ros2_ws/src/*/templates -type f 2>/dev/null | sort
      echo "${ROS_DISTRO:-wheels} $root"; } | sha256sum | cut -d' ' -f1
}

find_python() {
    local candidate
    for candidate in "${RLCO_PYTHON:-}" python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python python3 python; do
        [ -n "$candidate" ] || continue
        # A pyenv shim exists even where its version does not run, so ask it.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo "$@"
    else return 1; fi
}

renders() { "$venv/bin/python" -c 'import sapien, sys; sys.exit("Supported: 1" not in str(sapien.render.get_device_summary()))' >/dev/null 2>&1; }

# Rendering needs the Vulkan loader and, without a GPU, Mesa's lavapipe 24.3 or later.
install_rendering() {
    renders && return
    local packages="mesa-vulkan-drivers libvulkan1 libgl1 libegl1 libx11-6 libxext6" release="" site
    command -v apt-get >/dev/null || die "no Vulkan device found, and no apt here: install Mesa 24.3+ Vulkan drivers (lavapipe) or a GPU driver"
    . /etc/os-release
    local commands="apt-get update && apt-get install -y --no-install-recommends"
    if [ "${VERSION_CODENAME:-}" = bookworm ]; then
        release="-t bookworm-backports"
        if ! apt-cache policy | grep -q 'n=bookworm-backports'; then
            site=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' | awk '$1 == "bookworm" {print $2; exit}')
            [ -n "$site" ] || die "cannot tell this machine's Debian mirror; add bookworm-backports to the apt sources and run again"
            commands="echo 'deb $site bookworm-backports main' > /etc/apt/sources.list.d/rlco-backports.list && $commands"
        fi
    fi
    commands="$commands $release $packages"
    say "installing system packages for rendering: $packages"
    as_root env DEBIAN_FRONTEND=noninteractive bash -c "$commands" >"$venv/.rlco-apt.log" 2>&1 ||
        die "system packages are missing and could not be installed (log: $venv/.rlco-apt.log). Run as root:
    $commands"
    renders || die "still no Vulkan device after installing $packages; run '$venv/bin/rlco doctor'"
}

find_browser() {
    local candidate
    for candidate in "${RLCO_BROWSER:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        # Ubuntu's chromium-browser may be a stub that only says how to install the snap, so ask it.
        if [ -n "$candidate" ] && "$candidate" --version >/dev/null 2>&1; then return; fi
    done
    return 1
}

# Only tests need a browser, so a machine that cannot have one is still set up; those tests then fail, and say why.
install_browser() {
    if [ "${RLCO_BROWSER:-}" = none ] || find_browser; then return; fi
    local commands="apt-get update && apt-get install -y --no-install-recommends chromium"
    . /etc/os-release
    if [ "${ID:-}" = ubuntu ]; then commands="snap install chromium"; fi      # apt has a stub for it there
    say "installing Chromium for the console's tests"
    as_root env DEBIAN_FRONTEND=noninteractive bash -c "$commands" >>"$venv/.rlco-apt.log" 2>&1 || true
    find_browser || say "warning: no browser, so tests/test_console.py will fail. Install Chromium or Chrome (here, as root:
    $commands), or set RLCO_BROWSER to its program"
}

wanted=$(fingerprint)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c 'import rlco_common' 2>/dev/null; then
    exit 0
fi

python=$(find_python) || die "Python 3.12 not found. Install it (Ubuntu 24.04: apt install python3.12-venv; elsewhere: pyenv install 3.12), or set RLCO_PYTHON"
say "Python: $python"
# A moved or foreign venv has scripts that point elsewhere: make a new one.
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c "import sys; sys.exit(sys.version_info[:2] != (3, 12) or sys.prefix != '$venv')" 2>/dev/null; then
    rm -rf "$venv"
    "$python" -m venv ${ROS_DISTRO:+--system-site-packages} "$venv"
fi
requirements="-r requirements.txt"
if [ -z "${ROS_DISTRO:-}" ]; then requirements="$requirements -r requirements-ros.txt"; fi
"$venv/bin/python" -m uv --version >/dev/null 2>&1 || "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
"$venv/bin/python" -m uv --version >/dev/null 2>&1 || "$venv/bin/python" -m pip install -q uv
say "installing pinned requirements (about 7 GB the first time)"
# shellcheck disable=SC2086
"$venv/bin/python" -m uv pip install -q --compile-bytecode -p "$venv/bin/python" $requirements

install_rendering
install_browser

say "building the workspace into .venv"
if [ -z "${ROS_DISTRO:-}" ]; then export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv; fi
(cd ros2_ws && PATH=$venv/bin:$PATH "$venv/bin/colcon" --log-base log build --symlink-install --merge-install \
    --install-base "$venv" --event-handlers console_direct- console_cohesion- >log.txt 2>&1) ||
    { cat ros2_ws/log.txt; die "colcon build failed"; }
if grep -q "Failed to parse ROS package manifest" ros2_ws/log.txt; then cat ros2_ws/log.txt; die "a package.xml is invalid"; fi
rm -f ros2_ws/log.txt
# colcon's develop install relies on a sourced setup.bash; a .pth makes the packages importable without it.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for package in ros2_ws/src/*/; do echo "$root/ros2_ws/build/$(basename "$package")"; done >"$site/rlco_workspace.pth"
if [ -x "$venv/lib/rlco_trainer/rlco" ]; then ln -sf ../lib/rlco_trainer/rlco "$venv/bin/rlco"; fi

echo "$wanted" >"$stamp"
say "ready; next: make demo, make test, or .venv/bin/rlco doctor"
