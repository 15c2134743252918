# Tells what it may do, a finding a line.
say() { echo "hostile $1 $2" >&2; }
# Nothing of the agent's: the directory that holds this one's builds has its configuration beside it.
config=hidden
directory=$PWD
while [ "$directory" != / ]; do
    directory=$(dirname "$directory")
    [ ! -e "$directory/config.toml" ] || config=$directory/config.toml
done
say config "$config"
processes=own
for status in /proc/[0-9]*/cmdline; do
    case "$(tr '\0' ' ' <$status 2>/dev/null)" in *dockerd*|*"mayfly run"*) processes=others ;; esac
done
say processes $processes
devices=harmless
for device in /dev/*; do
    case $device in /dev/null|/dev/zero|/dev/full|/dev/random|/dev/urandom|'/dev/*') ;; *) devices=$device ;; esac
done
say devices "$devices"
