# A Docker engine for checks, sourced: engine_up, then base_image and stand_ins, at the end engine_down.
# One that answers already is used as it is. Else, as root on Debian, docker.io is installed and dockerd runs in a folder
# of its own, ended by its pid.
ENGINE_FOLDER=${ENGINE_FOLDER:-/var/tmp/featuremaps-engine}
BASE=python:3.11-slim-bookworm

engine_up() {
    if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then return 0; fi
    command -v apt-get >/dev/null && [ "$(id -u)" = 0 ] || { echo "no engine answers, and none can be installed"; return 1; }
    _packages && _start
}

engine_down() {
    [ -e "$ENGINE_FOLDER/dockerd.pid" ] || return 0
    kill "$(cat "$ENGINE_FOLDER/dockerd.pid")" 2>/dev/null
    for _ in $(seq 60); do [ -e "$ENGINE_FOLDER/dockerd.pid" ] || break; sleep 0.5; done
    umount "$ENGINE_FOLDER/exec/netns/default" 2>/dev/null || true
}

_packages() {
    export DOCKER_HOST=unix://$ENGINE_FOLDER/docker.sock DOCKER_CONFIG=$ENGINE_FOLDER/config
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    if ! command -v dockerd >/dev/null || ! command -v mmdebstrap >/dev/null; then
        apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io iptables mmdebstrap >/dev/null || return 1
    fi
    [ -x "$DOCKER_CONFIG/cli-plugins/docker-compose" ] || _plugins
}

# Debian 12 has neither compose 2 nor buildx: the next release's are unpacked beside, and nothing of it is installed.
_plugins() {
    local apt=$ENGINE_FOLDER/apt options
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/packages" "$apt/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(_mirror) trixie main" >"$apt/sources.list"
    options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update || return 1
    (cd "$apt/packages" && apt-get "${options[@]}" download docker-compose docker-buildx) || return 1
    for package in "$apt"/packages/*.deb; do dpkg -x "$package" "$apt/root" || return 1; done
    cp "$apt"/root/usr/libexec/docker/cli-plugins/* "$DOCKER_CONFIG/cli-plugins/"
    rm -rf "$apt"
}

# The mirror that this machine's apt is set up with.
_mirror() {
    { sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null
      sed -n 's/^deb .*\(http[^ ]*\) bookworm .*/\1/p' /etc/apt/sources.list 2>/dev/null; } | head -1
}

_start() {
    (
        # It outlives this script's pipes and locks, so it holds none of them.
        for file in /proc/$BASHPID/fd/*; do [ "${file##*/}" -le 2 ] || eval "exec ${file##*/}>&-"; done
        exec setsid dockerd --data-root "$ENGINE_FOLDER/data" --exec-root "$ENGINE_FOLDER/exec" \
            --pidfile "$ENGINE_FOLDER/dockerd.pid" -H "$DOCKER_HOST" --bip 172.31.250.1/24 \
            --default-address-pool base=172.31.240.0/21,size=27 >"$ENGINE_FOLDER/dockerd.log" 2>&1 </dev/null
    ) &
    for _ in $(seq 120); do
        if docker info >/dev/null 2>&1; then return 0; fi
        sleep 0.5
    done
    tail -5 "$ENGINE_FOLDER/dockerd.log"
    return 1
}

# The image that the Dockerfile starts from; where it cannot be pulled one like it, of Debian's packages and with what
# this machine is told about certificates and pip. It is for checks only: never push it.
base_image() {
    if docker image inspect "$BASE" >/dev/null 2>&1 || timeout 60 docker pull -q "$BASE" 2>/dev/null; then return 0; fi
    echo "$BASE cannot be pulled: putting one together"
    local folder status=1
    folder=$(mktemp -d)
    cat >"$folder/finish" <<'FINISH'
#!/bin/sh
set -e
for name in python python3; do ln -sf /usr/bin/python3 "$1/usr/local/bin/$name"; done
ln -sf /usr/bin/pip3 "$1/usr/local/bin/pip"
rm -f "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"
cat /etc/ssl/certs/ca-certificates.crt >"$1/etc/ssl/certs/ca-certificates.crt"
if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$1/etc/pip.conf"; fi
FINISH
    chmod +x "$folder/finish"
    mmdebstrap --quiet --variant=minbase --mode=root --include=ca-certificates,netbase,tzdata,python3,python3-pip,python3-venv \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook="$folder/finish \"\$1\"" bookworm "$folder/base.tar" "$(_mirror)" >/dev/null \
        && docker import -c 'CMD ["python3"]' -c 'ENV LANG=C.UTF-8' "$folder/base.tar" "$BASE" >/dev/null && status=0
    rm -rf "$folder"
    return $status
}

# The compose file's other images; where they cannot be pulled, Debian's programs of the same names. Debian has no
# Grafana.
stand_ins() {
    local images
    images=$(docker compose --profile metrics --profile redis config --images) || return 1
    for image in $images; do
        case $image in featuremaps:* | grafana/*) continue ;; esac
        if docker image inspect "$image" >/dev/null 2>&1 || timeout 60 docker pull -q "$image" 2>/dev/null; then continue; fi
        echo "$image cannot be pulled: taking Debian's"
        docker buildx build --quiet --load --tag "$image" - <deploy/checks/stand-in.Dockerfile || return 1
    done
}
