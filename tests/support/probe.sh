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
say uid "$(id -u)"
for line in Uid CapEff CapBnd CapAmb NoNewPrivs Seccomp; do
    say $line "$(sed -n "s/^$line:[[:space:]]*//p" /proc/self/status | tr '\t' ' ')"
done
# What would be root on the machine.
if (: >>/proc/sys/kernel/core_pattern) 2>/dev/null; then say core_pattern writable; else say core_pattern closed; fi
if (echo 1000 >/proc/self/oom_score_adj) 2>/dev/null; then say proc writable; else say proc closed; fi
if (: >/usr/bin/hostile || : >/etc/hostile || : >/hostile) 2>/dev/null; then say root writable; else say root closed; fi
say host "$(hostname)"
# Ways out that the kernel shows of each process: its program (the agent's own, for process 1), its root, its directories.
ways=closed
for process in /proc/[0-9]*; do
    if (: >>"$process/exe") 2>/dev/null; then ways="$process/exe is writable"; fi
    for way in "$process/root" "$process/cwd" "$process"/fd/*; do
        for file in /etc/shadow /etc/machine-id; do
            [ ! -e "$way$file" ] || ways=$way$file
            [ ! -e "$way/..$file" ] || ways=$way/..$file
        done
    done
done
say ways "$ways"
# A listener of the test on the loopback of the machine, by any way that there is.
network=closed
for place in 127.0.0.1/WITNESS; do
    timeout 5 bash -c "exec 3<>/dev/tcp/$place" 2>/dev/null && network=$place
done
for host in 127.0.0.1:WITNESS localhost:WITNESS '[::ffff:127.0.0.1]:WITNESS' 0.0.0.0:WITNESS; do
    [ -n "$ALL_PROXY$all_proxy$https_proxy" ] || continue
    proxy=${all_proxy:-${https_proxy:-$ALL_PROXY}}
    if curl -s -o /dev/null --noproxy '' --max-time 5 --proxy "$proxy" "http://$host/" 2>/dev/null; then
        network="$host through $proxy"
    fi
done
say network "$network"
# System calls by their numbers on x86_64: each is to be one that the kernel does not have, or may not be made.
if [ "$(uname -m)" = x86_64 ] && [ -x /usr/bin/perl ]; then
    say calls "$(perl -e '
        my %calls = (unshare => [272, 0x10000000], mount => [165, 0, 0, 0, 0, 0], ptrace => [101, 0, 0, 0, 0],
            keyctl => [250, 0, 0, 0], bpf => [321, 0, 0, 0], perf_event_open => [298, 0, 0, 0, 0, 0],
            io_uring_setup => [425, 1, 0], userfaultfd => [323, 0], open_by_handle_at => [304, 0, 0, 0],
            init_module => [175, 0, 0, 0], kexec_load => [246, 0, 0, 0, 0], clone3 => [435, 0, 0],
            setns => [308, 0, 0], personality => [135, 0x0040000], netlink => [41, 16, 3, 0], packet => [41, 17, 3, 0],
            alg => [41, 38, 5, 0], mknod => [133, 0, 0, 0], clone => [56, 0x10000000, 0, 0, 0, 0]);
        my @open;
        for my $name (sort keys %calls) {
            my ($number, @arguments) = @{$calls{$name}};
            my $result = syscall($number, @arguments);
            push @open, "$name($!)" if $result >= 0 || ($! != 38 && $! != 1);
        }
        print @open ? join(" ", @open) : "closed";')"
fi
say groups "$(cat /proc/self/cgroup 2>/dev/null | tr '\n' ' ')"
