//! Runs processes: from an `ExecStart` to a started program.
//!
//! Owns what a process is given (argv, environment, user, directory, descriptors). `spawn` starts it, `run`
//! accompanies it, `output` moves its bytes, `journal` keeps those of detached ones, `reap` learns of its end.

pub mod journal;
pub mod output;
pub mod run;
pub mod spawn;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::OFlag;
use roost_proto::guest::ExecStart;
use tonic::Status;

use crate::path::{self, default_directory};
use crate::sys;
use crate::user::{self, Accounts, User};
use spawn::{Program, SCRIPT_DESCRIPTOR, Step};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const ARGUMENTS_MAX: usize = 16_384;
const ENVIRONMENT_MAX: usize = 4_096;
/// So that a process that writes much is not switched away from for every 64 KiB.
const STDOUT_PIPE_BYTES: i32 = 256 << 10;
/// The kernel takes arguments of up to 128 KiB; longer shell text is run as a script.
const SHELL_ARGUMENT_BYTES_MAX: usize = 120 << 10;
/// How much of a command is kept for the process list.
const COMMAND_CHARS_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is nothing to run: give argv or shell text")]
    NoCommand,
    #[error("give either argv or shell text, not both")]
    TwoCommands,
    #[error("too many arguments or environment variables")]
    TooMany,
    #[error("{0} contains a zero byte")]
    ZeroByte(&'static str),
    #[error("{0:?} is not the name of an environment variable")]
    VariableName(String),
    #[error("{0}")]
    User(#[from] user::Error),
    #[error("{0}")]
    Path(#[from] path::Error),
    #[error("cannot make the process's descriptors")]
    Descriptors(#[source] std::io::Error),
    #[error("{source}: {path}")]
    WorkingDirectory { path: String, source: std::io::Error },
    #[error("cannot start the process")]
    Spawn(#[source] spawn::Error),
    #[error("{} processes are running already", crate::reap::RUNNING_MAX)]
    TooManyProcesses,
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::TooManyProcesses => Self::resource_exhausted(text),
            Error::User(user::Error::Read { .. }) => Self::internal(text),
            Error::Descriptors(source) => Self::resource_exhausted(format!("{text}: {source}")),
            Error::Spawn(spawn::Error { step: Step::Clone, source }) => {
                Self::resource_exhausted(format!("{text}: {source}"))
            }
            Error::Spawn(spawn::Error { step: Step::Exec, source }) => {
                Self::invalid_argument(format!("{text}: {source}"))
            }
            Error::Spawn(spawn::Error { step, source }) => {
                Self::internal(format!("{text}, at step {step:?}: {source}"))
            }
            _ => Self::invalid_argument(text),
        }
    }
}

/// Our ends of a process's descriptors.
#[derive(Debug)]
pub struct Pipes {
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: Option<OwnedFd>,
    /// All of it is one terminal, whose master `stdout` is.
    pub terminal: bool,
}

/// A process ready to be started.
#[derive(Debug)]
pub struct Prepared {
    pub program: Program,
    pub pipes: Pipes,
    pub command: String,
}

/// Works out everything about a process; touches the file system only to read.
pub fn prepare(
    start: &ExecStart,
    defaults: &BTreeMap<String, String>,
    accounts: &Accounts,
) -> Result<Prepared, Error> {
    let user = accounts.get_user(&start.user)?;
    let argv = choose_argv(start, || std::fs::exists("/bin/bash").unwrap_or(false))?;
    let environment = choose_environment(start, defaults, &user)?;
    let directory = match start.working_directory.as_str() {
        "" => default_directory(&user),
        given => path::resolve(given, &user)?,
    };
    let command = if start.shell.is_empty() { argv.join(" ") } else { start.shell.clone() };
    let search = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let candidates = candidates(&argv[0], search);
    let (child, pipes) = open_descriptors(start).map_err(Error::Descriptors)?;
    let [stdin, stdout, stderr] = child;
    let strings = environment.iter().map(|(name, value)| format!("{name}={value}"));
    let program = Program {
        candidates: c_strings(candidates, "the program's name")?,
        argv: c_strings(argv, "an argument")?,
        environment: c_strings(strings, "the environment")?,
        working_directory: c_string(directory, "the working directory")?,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        stdin,
        stdout,
        stderr,
        script: open_script(&start.shell).map_err(Error::Descriptors)?,
        terminal: start.terminal.is_some(),
    };
    Ok(Prepared { program, pipes, command: command.chars().take(COMMAND_CHARS_MAX).collect() })
}

fn choose_argv(start: &ExecStart, has_bash: impl FnOnce() -> bool) -> Result<Vec<String>, Error> {
    match (start.argv.is_empty(), start.shell.is_empty()) {
        (true, true) => Err(Error::NoCommand),
        (false, false) => Err(Error::TwoCommands),
        (false, true) if start.argv.len() > ARGUMENTS_MAX => Err(Error::TooMany),
        (false, true) => Ok(start.argv.clone()),
        (true, false) => {
            let shell = if has_bash() { "/bin/bash" } else { "/bin/sh" };
            if start.shell.len() > SHELL_ARGUMENT_BYTES_MAX {
                Ok(vec![shell.into(), format!("/proc/self/fd/{SCRIPT_DESCRIPTOR}")])
            } else {
                Ok(vec![shell.into(), "-c".into(), start.shell.clone()])
            }
        }
    }
}

/// A nameless file with shell text that the kernel would refuse as an argument: files written by heredoc.
fn open_script(text: &str) -> std::io::Result<Option<OwnedFd>> {
    if text.len() <= SHELL_ARGUMENT_BYTES_MAX {
        return Ok(None);
    }
    let script = nix::sys::memfd::memfd_create(c"shell", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    std::fs::File::from(script.try_clone()?).write_all_at(text.as_bytes(), 0)?;
    Ok(Some(script))
}

/// The user's own variables, then the guest's defaults, then those of the call.
fn choose_environment(
    start: &ExecStart,
    defaults: &BTreeMap<String, String>,
    user: &User,
) -> Result<BTreeMap<String, String>, Error> {
    let mut environment: BTreeMap<String, String> = [
        ("PATH", DEFAULT_PATH),
        ("LANG", "C.UTF-8"),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    if start.terminal.is_some() {
        environment.insert("TERM".into(), "xterm-256color".into());
    }
    let given = start.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
    environment.extend(defaults.iter().map(|(name, value)| (name.clone(), value.clone())));
    environment.extend(given);
    if environment.len() > ENVIRONMENT_MAX {
        return Err(Error::TooMany);
    }
    match environment.keys().find(|name| !is_variable_name(name)) {
        Some(name) => Err(Error::VariableName(name.clone())),
        None => Ok(environment),
    }
}

/// Anything `execve` can pass on as one variable.
pub fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Where `execvp` would look for a program.
fn candidates(program: &str, search: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    let directory = |entry: &str| if entry.is_empty() { "." } else { entry }.to_owned();
    search.split(':').map(|entry| format!("{}/{program}", directory(entry))).collect()
}

fn c_string(string: String, what: &'static str) -> Result<CString, Error> {
    CString::new(string).map_err(|_| Error::ZeroByte(what))
}

fn c_strings(strings: impl IntoIterator<Item = String>, what: &'static str) -> Result<Vec<CString>, Error> {
    strings.into_iter().map(|string| c_string(string, what)).collect()
}

/// The child's three descriptors and our ends, ours non-blocking.
fn open_descriptors(start: &ExecStart) -> std::io::Result<([OwnedFd; 3], Pipes)> {
    if let Some(size) = &start.terminal {
        let (master, terminal) = sys::open_terminal(clamp(size.columns, 80), clamp(size.rows, 24))?;
        let child = [terminal.try_clone()?, terminal.try_clone()?, terminal];
        let pipes = Pipes { stdin: Some(master.try_clone()?), stdout: master, stderr: None, terminal: true };
        return Ok((child, pipes));
    }
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(std::io::Error::from);
    let (stdin, our_stdin) = if start.stdin {
        let (read, write) = pipe()?;
        sys::set_nonblocking(&write)?;
        (read, Some(write))
    } else {
        (OwnedFd::from(std::fs::File::open("/dev/null")?), None)
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    sys::set_nonblocking(&our_stdout)?;
    sys::set_nonblocking(&our_stderr)?;
    sys::grow_pipe(&our_stdout, STDOUT_PIPE_BYTES);
    let pipes = Pipes { stdin: our_stdin, stdout: our_stdout, stderr: Some(our_stderr), terminal: false };
    Ok(([stdin, stdout, stderr], pipes))
}

/// A terminal's width or height.
pub fn clamp(value: u32, default: u16) -> u16 {
    if value == 0 { default } else { u16::try_from(value).unwrap_or(u16::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> ExecStart {
        ExecStart { shell: text.into(), ..ExecStart::default() }
    }

    fn user() -> User {
        Accounts::new("ada:x:7:7::/home/ada:/bin/zsh\n", "").get_user("ada").expect("known")
    }

    #[test]
    fn argv_or_shell_text_but_not_both() {
        let both = ExecStart { argv: vec!["a".into()], ..shell("b") };
        assert!(matches!(choose_argv(&both, || true), Err(Error::TwoCommands)));
        assert!(matches!(choose_argv(&ExecStart::default(), || true), Err(Error::NoCommand)));
        assert_eq!(choose_argv(&shell("x y"), || true).expect("bash"), ["/bin/bash", "-c", "x y"]);
        assert_eq!(choose_argv(&shell("x y"), || false).expect("sh"), ["/bin/sh", "-c", "x y"]);
        let long = shell(&"x".repeat(SHELL_ARGUMENT_BYTES_MAX + 1));
        assert_eq!(choose_argv(&long, || true).expect("script"), ["/bin/bash", "/proc/self/fd/3"]);
    }

    #[test]
    fn the_call_overrides_the_guest_overrides_the_user() {
        let defaults = BTreeMap::from([("A".into(), "guest".into()), ("HOME".into(), "/guest".into())]);
        let mut start = shell("true");
        start.environment.insert("A".into(), "call".into());
        let environment = choose_environment(&start, &defaults, &user()).expect("valid");
        let get = |name: &str| environment.get(name).map(String::as_str);
        assert_eq!((get("A"), get("HOME"), get("USER")), (Some("call"), Some("/guest"), Some("ada")));
        assert_eq!((get("TERM"), get("SHELL")), (None, Some("/bin/zsh")));
    }

    #[test]
    fn variables_that_cannot_be_passed_on_are_refused() {
        for name in ["", "A=B", "A\0"] {
            let mut start = shell("true");
            start.environment.insert(name.into(), "x".into());
            let result = choose_environment(&start, &BTreeMap::new(), &user());
            assert!(matches!(result, Err(Error::VariableName(_))), "{name:?}");
        }
        let zero = ExecStart { argv: vec!["a\0b".into()], user: "0".into(), ..ExecStart::default() };
        let result = prepare(&zero, &BTreeMap::new(), &Accounts::default());
        assert!(matches!(result, Err(Error::ZeroByte(_))));
    }

    #[test]
    fn programs_are_searched_for_like_execvp_does() {
        assert_eq!(candidates("./x", "/bin"), ["./x"]);
        assert_eq!(candidates("x", "/a:/b:"), ["/a/x", "/b/x", "./x"]);
    }
}
