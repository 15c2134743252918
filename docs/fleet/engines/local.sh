#!/bin/sh
# Engine for `mayfly manager`: instances are agent processes on this machine. A fleet from zero on a laptop.
# Arguments: a directory for the agents, the URL of the manager, the file with the fleet's token, the program mayfly.
directory=$1 url=$2 token_file=$3 mayfly=${4:-mayfly}
mkdir -p "$directory" && directory=$(cd "$directory" && pwd -P) || exit

text() { printf '%s\n' "$request" | sed -n "s/.*\"$1\":\"\([A-Za-z0-9_-]*\)\".*/\1/p"; }
number() { printf '%s\n' "$request" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }

# True if the agent of a directory runs. The kernel may give its number to another process later, so the directory counts.
runs() { [ -e "$1/pid" ] && [ "$(readlink "/proc/$(cat "$1/pid")/cwd")" = "$1" ]; }
# Names of the agents that run. An agent that shut down by order of the manager does not.
agents() {
    for agent in "$directory"/*; do runs "$agent" && basename "$agent"; done
}
start() {
    # Deletes the checkouts and caches of agents that have ended, so that they do not fill the disk. Keeps their logs.
    for agent in "$directory"/*; do runs "$agent" || rm -rf "$agent/builds" "$agent/cache"; done
    name=local-$(od -An -N6 -tx1 /dev/urandom | tr -d ' ')
    mkdir -p "$directory/$name"
    cat >"$directory/$name/config.toml" <<END
[mayfly]
instance_id = "$name"
state_dir = "$directory/$name/state"
leave = "exit"
[[runners]]
name = "$name"
url = "$url"
token = "$(cat "$token_file")"
END
    chmod 600 "$directory/$name/config.toml"
    # A session of its own: the agent survives this program and the manager.
    cd "$directory/$name" || return
    setsid "$mayfly" run --config config.toml </dev/null >agent.log 2>&1 &
    echo $! >pid
    cd "$OLDPWD" || return
}
grow() {
    missing=$(($(number instances) - $(agents | wc -l)))
    while [ "$missing" -gt 0 ]; do start; missing=$((missing - 1)); done
}
terminate() {
    agent=$directory/$(text instance)
    runs "$agent" && kill -KILL "$(cat "$agent/pid")"
    case $request in *'"decrement":false'*) start ;; esac
}
group() {
    members=$(agents | while read -r name; do printf ',{"instance":"%s"}' "$name"; done)
    printf '{"members":[%s]}\n' "${members#,}"
}

while read -r request; do
    case $(text call) in
        group) group ;;
        set_target) grow; echo '{}' ;;
        terminate) terminate; echo '{}' ;;
        *) echo '{}' ;;
    esac
done
