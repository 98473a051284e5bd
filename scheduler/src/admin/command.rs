//! The commands, as the command line reads them and as they go over the socket.

use clap::Subcommand;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Tenants: who has sandboxes.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// API keys of a tenant. A key is shown once, when it is made.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Hosts: machines that run an agent.
    #[command(subcommand)]
    Host(HostCommand),
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantCommand {
    /// Make a tenant with its default workspace and project.
    Create {
        /// What people call it, like "Acme".
        name: String,
    },
    /// List all tenants.
    List,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyCommand {
    /// Make a key and print it: it cannot be shown again.
    Create {
        /// Id or slug of the tenant.
        #[arg(long)]
        tenant: String,
        /// What the key is for.
        #[arg(long, default_value = "operator")]
        name: String,
        /// Confine it to one workspace (id or slug): an msk_w_ key.
        #[arg(long)]
        workspace: Option<String>,
        /// Scopes, like sandboxes:write; everything when left out.
        #[arg(long = "scope")]
        scopes: Vec<String>,
        /// Days it is good for; without end when left out.
        #[arg(long)]
        days: Option<u32>,
    },
    /// The keys of a tenant, by prefix.
    List {
        /// Id or slug of the tenant.
        #[arg(long)]
        tenant: String,
    },
    /// End a key at once.
    Revoke {
        /// Id or slug of the tenant.
        #[arg(long)]
        tenant: String,
        /// The key's id (key_…) or its prefix as `list` shows it.
        key: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostCommand {
    /// Make a one-time token for a machine to join with, and print it: it cannot be shown again.
    Token {
        /// Minutes it is good for.
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
    /// List all hosts, with what is reserved on them.
    List,
    /// Give it no new sandboxes; those it has stay.
    Cordon {
        /// Its id, as `list` shows it.
        host: String,
    },
    /// Give it new sandboxes again.
    Uncordon {
        /// Its id, as `list` shows it.
        host: String,
    },
    /// Refuse its certificates from now on. Its sandboxes stay placed on it.
    Remove {
        /// Its id, as `list` shows it.
        host: String,
    },
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Tenant {
        id: String,
        slug: String,
        workspace_id: String,
    },
    Tenants(Vec<Vec<String>>),
    /// `secret` is the key or token itself, in this one answer.
    Made {
        secret: String,
        id: String,
        note: String,
    },
    Keys(Vec<Vec<String>>),
    Hosts(Vec<Vec<String>>),
    Done {
        what: String,
    },
    Refused {
        why: String,
    },
}

impl Answer {
    /// For people: what was made on a line of its own, lists as columns.
    pub fn text(&self) -> String {
        match self {
            Answer::Tenant { id, .. } => id.clone(),
            Answer::Made { secret, .. } => secret.clone(),
            Answer::Done { what } | Answer::Refused { why: what } => what.clone(),
            Answer::Tenants(rows) => columns(&["ID", "SLUG", "STATE", "NAME"], rows),
            Answer::Keys(rows) => columns(&["ID", "PREFIX", "STATE", "WORKSPACE", "SCOPES", "NAME"], rows),
            Answer::Hosts(rows) => {
                columns(&["ID", "STATE", "VMM", "MEMORY_MIB", "DISK_MIB", "SEEN_S_AGO", "ADDRESS"], rows)
            }
        }
    }

    /// What to say beside the result, on standard error.
    pub fn note(&self) -> Option<&str> {
        match self {
            Answer::Made { note, .. } => Some(note),
            _ => None,
        }
    }
}

fn columns(titles: &[&str], rows: &[Vec<String>]) -> String {
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&titles).chain(rows).collect();
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &&Vec<String>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_line_up() {
        let rows = vec![vec!["ten_1".into(), "acme".into(), "active".into(), "Acme".into()]];
        assert_eq!(Answer::Tenants(rows).text(), "ID     SLUG  STATE   NAME\nten_1  acme  active  Acme");
    }

    #[test]
    fn commands_survive_the_socket() {
        let command = Command::Key(KeyCommand::Revoke { tenant: "acme".into(), key: "key_1".into() });
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }
}
