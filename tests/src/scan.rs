//! Looks for bytes where they must not be: in the memory of a process, in files.
//!
//! Every search is for the value as it is, in base64 (at each of the three offsets) and percent-encoded. A scan that
//! finds nothing proves something only beside one that finds: plant what must be found and look for it as well.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::program;

const PAGE_BYTES: usize = 4096;
/// Larger areas are not mapped by anything looked at here.
const AREA_BYTES_MAX: u64 = 4 << 30;

/// The forms in which `value` could have been written down.
pub fn forms(value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned(), value.bytes().map(|byte| format!("%{byte:02X}")).collect()];
    for offset in 0..3 {
        let shifted = [&b"\0\0"[..offset], value.as_bytes()].concat();
        let text = STANDARD_NO_PAD.encode(&shifted);
        // What depends on the neighbours is left out: the first characters and the last two.
        let from = [0, 2, 3][offset];
        forms.push(text[from..text.len() - 2].to_owned());
    }
    forms
}

/// Whether the memory of a process holds any of the forms of `value`.
pub fn is_in_memory(pid: i64, value: &str) -> anyhow::Result<bool> {
    let memory =
        File::open(format!("/proc/{pid}/mem")).with_context(|| format!("process {pid} is not there"))?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut used = Vec::new();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let (from, to) = range.context("reading /proc/pid/maps")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        if to - from > AREA_BYTES_MAX {
            continue;
        }
        let mut area = vec![0; usize::try_from(to - from)?];
        // Special areas cannot be read, and hold nothing.
        if memory.read_exact_at(&mut area, from).is_ok() {
            let pages = area.chunks(PAGE_BYTES).filter(|page| page.iter().any(|byte| *byte != 0));
            used.extend(pages.flatten());
        }
    }
    is_in(&used, value)
}

/// Whether `bytes` hold any of the forms of `value`.
pub fn is_in(bytes: &[u8], value: &str) -> anyhow::Result<bool> {
    let mut grep = program::command("grep");
    grep.args(["-a", "-q", "-F", "-e", &forms(value).join("\n")]).env("LC_ALL", "C");
    found(program::run(grep, bytes)?.code)
}

/// The files below `directory` that hold any of the forms of `value`.
pub fn files_with(directory: &Path, value: &str) -> anyhow::Result<Vec<String>> {
    let mut grep = program::command("grep");
    grep.args(["-r", "-a", "-l", "-F", "-D", "skip", "-e", &forms(value).join("\n")]);
    grep.arg(directory).env("LC_ALL", "C");
    let outcome = program::run(grep, b"")?;
    // 2: a file went away while it was read.
    if outcome.code == 2 && !outcome.complaint().contains("No such file") {
        anyhow::bail!("grep: {}", outcome.complaint());
    }
    Ok(outcome.text().lines().map(str::to_owned).collect())
}

fn found(code: i32) -> anyhow::Result<bool> {
    match code {
        0 => Ok(true),
        1 => Ok(false),
        other => anyhow::bail!("grep exited with {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_wherever_it_begins() {
        let value = "tour-secret-8f2c61d0";
        for before in ["", "x", "xy", "xyz"] {
            let text = STANDARD_NO_PAD.encode(format!("{before}{value}tail"));
            assert!(forms(value).iter().any(|form| text.contains(form)), "{before:?}: {text}");
        }
        assert!(forms("a/b").contains(&"%61%2F%62".to_owned()));
    }

    #[test]
    fn a_planted_file_and_the_own_memory_are_seen() {
        let value = format!("planted-{}-{}", std::process::id(), "value");
        let directory = std::env::temp_dir().join(format!("roost-scan-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("clean"), "nothing").unwrap();
        std::fs::write(directory.join("planted"), STANDARD_NO_PAD.encode(format!("user:{value}"))).unwrap();
        let files = files_with(&directory, &value);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(files.unwrap().len(), 1);
        assert!(is_in_memory(std::process::id().into(), &value).unwrap());
    }
}
