#!/bin/sh
# Engine for `mayfly manager`: instances are servers of Hetzner Cloud. Needs hcloud, and HCLOUD_TOKEN in the environment.
# Arguments: a name for the fleet, the server type, the image, the file with the user data.
fleet=$1 type=$2 image=$3 user_data=$4

servers() { hcloud server list -l "fleet=$fleet" -o noheader -o columns=name,status; }
text() { printf '%s\n' "$request" | sed -n "s/.*\"$1\":\"\([A-Za-z0-9_-]*\)\".*/\1/p"; }
number() { printf '%s\n' "$request" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
create() {
    hcloud server create --name "$fleet-$(od -An -N6 -tx1 /dev/urandom | tr -d ' ')" --type "$type" --image "$image" \
        --label "fleet=$fleet" --user-data-from-file "$user_data" >&2
}
# answer COMMAND: runs the command, and answers the request with its success or failure.
answer() { if "$@"; then echo '{}'; else echo '{"error":"hcloud failed, see the log","temporary":true}'; fi; }

# Starts servers until there are as many as wanted.
grow() {
    list=$(servers) || return 1
    missing=$(($(number instances) - $(printf '%s' "$list" | grep -c .)))
    while [ "$missing" -gt 0 ]; do create || return 1; missing=$((missing - 1)); done
}
terminate() { hcloud server delete "$(text instance)" >&2 && case $request in *'"decrement":false'*) create ;; esac; }
# If the servers cannot be listed, answers with an error: an empty list would mean that all servers are gone.
group() {
    list=$(servers) || { answer false; return; }
    members=$(printf '%s\n' "$list" | while read -r name status; do
        case $status in '') continue ;; running) ;; stopping | deleting) status=terminating ;; *) status=creating ;; esac
        printf ',{"instance":"%s","state":"%s"}' "$name" "$status"
    done)
    printf '{"members":[%s]}\n' "${members#,}"
}

while read -r request; do
    case $(text call) in
        group) group ;;
        set_target) answer grow ;;
        terminate) answer terminate ;;
        *) echo '{}' ;;
    esac
done
