//! The seccomp filter of sandboxed file tasks: allows the system calls of git, git-lfs, shells and archivers. All
//! others fail with ENOSYS, so that libraries fall back to older calls.
//!
//! Not allowed: mounts, namespaces, tracing, keys, kernel modules, BPF programs, asynchronous calls that this filter
//! would not see (`io_uring`), files by handle (`open_by_handle_at`), and sockets other than IP and Unix.

use nix::libc;
use seccompiler::BpfProgram;

use super::filter::{Arguments, compile};

/// Calls of every architecture, with any arguments.
const ALLOWED: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Older variants of these calls, which newer architectures lack.
#[cfg(target_arch = "x86_64")]
const ALLOWED_ON_ARCH: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_ON_ARCH: &[i64] = &[];

/// Flags of clone(2) that create namespaces.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Allowed socket families.
const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Allowed requests of ioctl(2): none that injects terminal input or changes a file system.
#[allow(clippy::unnecessary_cast)] // Their type differs between C libraries.
const REQUESTS: [u32; 9] = [
    libc::FIOCLEX as u32,
    libc::FIONBIO as u32,
    libc::FIONCLEX as u32,
    libc::FIONREAD as u32,
    libc::TCGETS as u32,
    libc::TIOCGPGRP as u32,
    libc::TIOCGWINSZ as u32,
    // FICLONE and FICLONERANGE; their numbers are part of the kernel's interface.
    0x4004_9409,
    0x4020_940d,
];

/// Allowed operations of prctl(2): they affect only the process itself.
const OPERATIONS: [libc::c_int; 8] = [
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_DUMPABLE,
    libc::PR_GET_NAME,
    libc::PR_SET_NAME,
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_VMA,
    libc::PR_CAPBSET_READ,
];

/// Allowed arguments of personality(2): the query, and the default personality.
const PERSONALITIES: [u32; 2] = [0xffff_ffff, 0];

/// Installs the filter for this process and its children. Errors: the kernel does not support it.
pub fn restrict() -> Result<(), String> {
    seccompiler::apply_filter(&program()?).map_err(|error| error.to_string())
}

fn program() -> Result<BpfProgram, String> {
    let one_of =
        |index: u8, values: &[i32]| Arguments::OneOf(index, values.iter().map(|value| *value as u32).collect());
    let with_arguments = [
        (libc::SYS_clone, Arguments::Without(0, NAMESPACES as u32)),
        (libc::SYS_socket, one_of(0, &FAMILIES)),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX])),
        (libc::SYS_ioctl, Arguments::OneOf(1, REQUESTS.to_vec())),
        (libc::SYS_prctl, one_of(0, &OPERATIONS)),
        (libc::SYS_personality, Arguments::OneOf(0, PERSONALITIES.to_vec())),
    ];
    let any = ALLOWED.iter().chain(ALLOWED_ON_ARCH).map(|call| (*call, Arguments::Any));
    let allowed = any.chain(with_arguments).map(|(call, arguments)| (call as u32, arguments));
    compile(allowed.collect())
}

#[cfg(test)]
mod tests {
    use super::super::filter::tests::{ARCHITECTURE, run};
    use super::*;

    fn allows(call: i64, arguments: [u32; 6]) -> bool {
        let program = program().expect("a program");
        run(&program, ARCHITECTURE, call as u32, arguments) == libc::SECCOMP_RET_ALLOW
    }

    #[test]
    fn the_filter_is_small() {
        let length = program().expect("a program").len();
        // The kernel's limit is 4096 instructions. A shorter filter takes less time to install.
        assert!(length < 300, "{length}");
    }

    #[test]
    fn every_call_on_the_list_is_allowed_and_no_other() {
        let program = program().expect("a program");
        for call in 0..1024_u32 {
            let is_listed = ALLOWED.iter().chain(ALLOWED_ON_ARCH).any(|listed| *listed == i64::from(call));
            let depends = [
                libc::SYS_clone,
                libc::SYS_socket,
                libc::SYS_socketpair,
                libc::SYS_ioctl,
                libc::SYS_prctl,
                libc::SYS_personality,
            ];
            if !depends.contains(&i64::from(call)) {
                let allowed = run(&program, ARCHITECTURE, call, [0; 6]) == libc::SECCOMP_RET_ALLOW;
                assert_eq!(allowed, is_listed, "{call}");
            }
            // The calls of the x32 ABI have this bit.
            let of_x32 = run(&program, ARCHITECTURE, call | 1 << 30, [0; 6]);
            assert_ne!(of_x32, libc::SECCOMP_RET_ALLOW, "{call}");
        }
    }

    #[test]
    fn calls_are_allowed_with_harmless_arguments_only() {
        let first = |value: i32| [value as u32, 0, 0, 0, 0, 0];
        assert!(allows(libc::SYS_clone, first(libc::SIGCHLD)));
        assert!(allows(libc::SYS_clone, first(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD)));
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            assert!(!allows(libc::SYS_clone, first(flag | libc::SIGCHLD)), "{flag:#x}");
        }
        assert!(allows(libc::SYS_socket, first(libc::AF_INET6)));
        for family in [libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, libc::AF_XDP] {
            assert!(!allows(libc::SYS_socket, first(family)), "{family}");
        }
        assert!(!allows(libc::SYS_socketpair, first(libc::AF_INET)));
        let second = |value: u32| [0, value, 0, 0, 0, 0];
        assert!(allows(libc::SYS_ioctl, second(libc::FIONREAD as u32)));
        // 0x40086602 is FS_IOC_SETFLAGS. The other requests concern terminals.
        for request in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32, libc::TIOCSCTTY as u32, 0x4008_6602] {
            assert!(!allows(libc::SYS_ioctl, second(request)), "{request:#x}");
        }
        for operation in
            [libc::PR_SET_MM, libc::PR_SET_SECCOMP, libc::PR_CAP_AMBIENT, libc::PR_SET_PTRACER, libc::PR_SET_SECUREBITS]
        {
            assert!(!allows(libc::SYS_prctl, first(operation)), "{operation}");
        }
        assert!(!allows(libc::SYS_personality, first(libc::READ_IMPLIES_EXEC)));
    }

    /// Calls by which a process could leave the sandbox.
    const ESCAPES: &[i64] = &[
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_clone3,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_request_key,
        libc::SYS_process_vm_readv,
        libc::SYS_pidfd_getfd,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
        libc::SYS_fanotify_init,
        libc::SYS_mount_setattr,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_swapon,
        libc::SYS_reboot,
        libc::SYS_syslog,
        libc::SYS_quotactl,
        libc::SYS_acct,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_shmget,
        libc::SYS_msgget,
        libc::SYS_semget,
        libc::SYS_mq_open,
        libc::SYS_setxattr,
        libc::SYS_setgid,
        libc::SYS_setgroups,
        libc::SYS_setresuid,
        libc::SYS_setns,
        libc::SYS_userfaultfd,
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_kexec_load,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_mknodat,
        libc::SYS_setuid,
        libc::SYS_capset,
        libc::SYS_seccomp,
    ];

    #[test]
    fn calls_that_could_escape_the_sandbox_are_not_allowed() {
        for call in ESCAPES {
            assert!(!allows(*call, [0; 6]), "{call}");
        }
    }
}
