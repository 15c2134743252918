//! Compiles a list of allowed system calls to a seccomp filter (seccomp(2), a classic BPF program).
//!
//! The program finds a call by binary search. The linear program of the seccompiler crate has four times the
//! instructions, and installing it takes 0.5 ms longer: the kernel compiles it and then runs it once for each call.

use nix::libc;
use seccompiler::{BpfProgram, sock_filter};

/// `AUDIT_ARCH_*` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`: the number of the call, the architecture, and the arguments, of which the kernel
/// uses the lower half here. Both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const ALLOW: sock_filter = instruction(RETURN, libc::SECCOMP_RET_ALLOW);
/// The result of a call that is not allowed: ENOSYS, as from a kernel without the call, so that libraries fall back to
/// older calls.
const UNKNOWN: sock_filter = instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
const KILL: sock_filter = instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS);

/// The arguments with which a call is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arguments {
    Any,
    /// The argument with this index has one of the values.
    OneOf(u8, Vec<u32>),
    /// The argument with this index has none of the bits.
    Without(u8, u32),
}

/// Compiles the filter: all other calls fail with ENOSYS. Errors: the program is too large.
pub fn compile(mut allowed: Vec<(u32, Arguments)>) -> Result<BpfProgram, String> {
    allowed.sort_unstable_by_key(|(number, _)| *number);
    // Ranges of call numbers, each with its first number; `None` for calls that are not allowed.
    let mut ranges: Vec<(u32, Option<Arguments>)> = vec![(0, None)];
    for (number, arguments) in allowed {
        let follows = ranges.last().is_some_and(|(first, _)| *first == number);
        if follows {
            ranges.pop();
        }
        let extends = arguments == Arguments::Any && matches!(ranges.last(), Some((_, Some(Arguments::Any))));
        if !extends {
            ranges.push((number, Some(arguments)));
        }
        ranges.push((number + 1, None));
    }
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE_OFFSET),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0)?,
        KILL,
        instruction(LOAD, NUMBER),
    ];
    program.extend(search(&ranges)?);
    Ok(program)
}

/// Compiles the search for the range that contains the loaded number.
fn search(ranges: &[(u32, Option<Arguments>)]) -> Result<Vec<sock_filter>, String> {
    if let [(_, arguments)] = ranges {
        return decide(arguments.as_ref());
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search(lower)?, search(upper)?);
    let mut program = vec![jump(libc::BPF_JGE, upper[0].0, below.len(), 0)?];
    program.extend(below);
    program.extend(above);
    Ok(program)
}

/// Compiles the decision about the calls of one range.
fn decide(arguments: Option<&Arguments>) -> Result<Vec<sock_filter>, String> {
    let load = |index: u8| instruction(LOAD, ARGUMENTS + 8 * u32::from(index));
    Ok(match arguments {
        None => vec![UNKNOWN],
        Some(Arguments::Any) => vec![ALLOW],
        Some(Arguments::Without(index, bits)) => vec![load(*index), jump(libc::BPF_JSET, *bits, 0, 1)?, UNKNOWN, ALLOW],
        Some(Arguments::OneOf(index, values)) => {
            let mut program = vec![load(*index)];
            for (position, value) in values.iter().enumerate() {
                program.push(jump(libc::BPF_JEQ, *value, values.len() - position, 0)?);
            }
            program.extend([UNKNOWN, ALLOW]);
            program
        }
    })
}

const fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// A conditional jump: skips `if_true` instructions if the comparison holds, otherwise `if_false`.
fn jump(compare: u32, value: u32, if_true: usize, if_false: u8) -> Result<sock_filter, String> {
    let if_true = u8::try_from(if_true).map_err(|_| "the filter of system calls is too large".to_owned())?;
    Ok(sock_filter { jt: if_true, jf: if_false, ..instruction(libc::BPF_JMP | compare | libc::BPF_K, value) })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const ARCHITECTURE: u32 = super::ARCHITECTURE;

    /// What the program returns for a call, as the kernel runs it.
    pub fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = &program[at];
            at += 1;
            let code = u32::from(step.code);
            let mut branch = |taken: bool| at += usize::from(if taken { step.jt } else { step.jf });
            match code {
                LOAD => {
                    loaded = match step.k {
                        NUMBER => number,
                        ARCHITECTURE_OFFSET => architecture,
                        offset => arguments[(offset - ARGUMENTS) as usize / 8],
                    }
                }
                RETURN => return step.k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => branch(loaded == step.k),
                code if code == libc::BPF_JMP | libc::BPF_JGE => branch(loaded >= step.k),
                code if code == libc::BPF_JMP | libc::BPF_JSET => branch(loaded & step.k != 0),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn every_call_gets_the_answer_of_the_list() {
        let list = vec![
            (7, Arguments::OneOf(1, vec![3, 9])),
            (0, Arguments::Any),
            (1, Arguments::Any),
            (2, Arguments::Without(0, 0x30)),
            (3, Arguments::Any),
            (400, Arguments::Any),
        ];
        let program = compile(list).expect("compile the filter");
        let answer = |number: u32, first: u32, second: u32| {
            run(&program, ARCHITECTURE, number, [first, second, 0, 0, 0, 0]) == ALLOW.k
        };
        for number in (0..500).chain([1 << 30, u32::MAX]) {
            if ![2, 7].contains(&number) {
                assert_eq!(answer(number, 0, 0), [0, 1, 3, 400].contains(&number), "{number}");
            }
        }
        assert!(answer(2, 0x0f, 0) && !answer(2, 0x10, 0) && !answer(2, 0x30, 0));
        assert!(answer(7, 0, 3) && answer(7, 0, 9) && !answer(7, 3, 0));
        assert_eq!(run(&program, ARCHITECTURE, 5, [0; 6]), UNKNOWN.k);
        assert_eq!(run(&program, ARCHITECTURE ^ 1, 0, [0; 6]), KILL.k, "another architecture");
    }

    #[test]
    fn an_empty_list_allows_nothing_and_a_huge_one_is_refused() {
        let program = compile(Vec::new()).expect("compile the filter");
        assert_eq!(run(&program, ARCHITECTURE, 0, [0; 6]), UNKNOWN.k);
        compile((0..1000).map(|number| (number * 2, Arguments::Any)).collect()).expect_err("must be refused");
    }
}
