//! Processes that outlive the call that started them.

use futures::Stream;
use roost_api::Timestamp;
use roost_api::process::Process;
use roost_proto::guest::exec_output::Output;
use roost_proto::guest::{AttachRequest, ListProcessesRequest, Process as GuestProcess, SignalRequest};

use super::command::{self, Frame, Plan};
use super::output::Collected;
use super::{Guest, refuse};
use crate::app::Error;

/// What the guest retains of a process's output.
const RETAINED_BYTES: u64 = 1024 * 1024;
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// Between asking a process to end and ending it.
const KILL_AFTER: std::time::Duration = std::time::Duration::from_secs(5);

/// Starts a process that runs on by itself and says which it is.
pub async fn start(guest: &Guest, plan: Plan) -> Result<u32, Error> {
    let mut outputs = command::open(guest, plan, true).await?;
    while let Some(message) = outputs.message().await.map_err(|status| refuse(status, None))? {
        if let Some(Output::Started(started)) = message.output {
            return Ok(started.pid);
        }
    }
    Err(Error::GuestSilent { source: None })
}

pub async fn list(guest: &Guest) -> Result<Vec<Process>, Error> {
    let answer = guest.client.clone().list_processes(guest.quick(ListProcessesRequest {})).await;
    let processes = answer.map_err(|status| refuse(status, None))?.into_inner().processes;
    Ok(processes.into_iter().map(record).collect())
}

pub async fn get(guest: &Guest, pid: u32) -> Result<Process, Error> {
    let found = list(guest).await?.into_iter().find(|process| process.pid == pid);
    found.ok_or_else(|| Error::NoProcess { pid: pid.to_string() })
}

/// What the process wrote and the guest still has.
pub async fn logs(guest: &Guest, pid: u32) -> Result<String, Error> {
    get(guest, pid).await?;
    let request = AttachRequest { pid, tail_bytes: RETAINED_BYTES, follow: false };
    let answer = guest.client.clone().attach(guest.request(request)).await;
    let mut outputs = answer.map_err(|status| refuse(status, None))?.into_inner();
    let mut text = Collected::default();
    while let Some(message) = outputs.message().await.map_err(|status| refuse(status, None))? {
        if let Some(Output::Stdout(chunk) | Output::Stderr(chunk)) = message.output {
            text.push(&chunk);
        }
    }
    Ok(text.into_text())
}

/// What the process wrote, then what it writes until it ends.
pub async fn follow(
    guest: &Guest,
    pid: u32,
) -> Result<impl Stream<Item = Frame> + Send + 'static + use<>, Error> {
    get(guest, pid).await?;
    let request = AttachRequest { pid, tail_bytes: RETAINED_BYTES, follow: true };
    let answer = guest.client.clone().attach(guest.request(request)).await;
    Ok(command::frames(answer.map_err(|status| refuse(status, None))?.into_inner()))
}

/// Asks the process group to end and ends it when it has not after a while.
pub async fn stop(guest: &Guest, pid: u32) -> Result<(), Error> {
    signal(guest, pid, SIGTERM).await?;
    let guest = guest.clone();
    tokio::spawn(async move {
        tokio::time::sleep(KILL_AFTER).await;
        if matches!(get(&guest, pid).await, Ok(process) if process.running) {
            // The guest may be gone by now, and its processes with it.
            let _ = signal(&guest, pid, SIGKILL).await;
        }
    });
    Ok(())
}

pub async fn signal(guest: &Guest, pid: u32, signal: u32) -> Result<(), Error> {
    if !get(guest, pid).await?.running {
        return Ok(());
    }
    let request = SignalRequest { pid, signal, group: true };
    guest.client.clone().signal(guest.quick(request)).await.map_err(|status| refuse(status, None))?;
    Ok(())
}

/// Names like `TERM`, `SIGKILL` and numbers.
pub fn parse_signal(text: &str) -> Result<u32, Error> {
    const NAMES: &[(&str, u32)] = &[
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("KILL", SIGKILL),
        ("USR1", 10),
        ("USR2", 12),
        ("TERM", SIGTERM),
        ("CONT", 18),
        ("STOP", 19),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = known.or_else(|| name.parse().ok().filter(|number| (1..=64).contains(number)));
    number.ok_or_else(|| Error::invalid("signal", "expected a name like TERM or a number from 1 to 64"))
}

fn record(process: GuestProcess) -> Process {
    let exited = process.exited.unwrap_or_default();
    Process {
        pid: process.pid,
        id: process.pid.to_string(),
        name: (!process.name.is_empty()).then_some(process.name),
        command: process.command,
        status: if process.running { "running" } else { "exited" }.to_owned(),
        running: process.running,
        exit_code: (!process.running).then_some(exited.exit_code),
        signal: (exited.signal != 0).then_some(exited.signal),
        timed_out: exited.timed_out,
        started_at: Timestamp::from_micros(process.started_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigkill", 9), ("2", 2), ("64", 64)] {
            assert_eq!(parse_signal(text).unwrap(), number);
        }
        for text in ["", "0", "65", "SIGFOO", "-1"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
