//! The command line: what to do, and the exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use opensecureconf::config::{self, Config};
use opensecureconf::healthcheck::{self, Probe};
use opensecureconf::runtime::maintenance::{self, Outcome};
use opensecureconf::runtime::{self, PromptError};
use opensecureconf::telemetry::{Log, LogError};

#[global_allocator]
static ALLOCATOR: runtime::WipingAllocator = runtime::WipingAllocator;

/// Encrypted configuration server with the API of OpenSecureConf.
///
/// All settings are environment variables (OSC_HOST, OSC_HOST_PORT, ...) or lines of a .env file in
/// the working directory; .env.example lists them.
#[derive(Parser)]
#[command(version, about, long_about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server until SIGTERM or SIGINT (the default).
    Serve,
    /// Checks the settings, prints them without their secrets, and ends.
    CheckConfig,
    /// Puts right what keeps this node from its cluster, while no server runs; says what it changes.
    Repair {
        /// Gives versions that are ahead of the clock stamps of now: no other node takes them as they are.
        #[arg(long, required = true)]
        versions: bool,
        /// Changes nothing, and says what would be changed.
        #[arg(long)]
        dry_run: bool,
    },
    /// Back up the database and the salt, verified, also while a server runs.
    Backup {
        /// The directory for this backup: an empty one, or one that does not exist.
        directory: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Restore a backup while no server runs; the present files are kept under another name.
    Restore {
        /// The directory of the backup.
        directory: PathBuf,
        /// Check everything and change nothing.
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verify the database, the salt and each token; with a user key also count the entries it opens.
    ///
    /// The user key comes from OSC_USER_KEY, from the first line of OSC_USER_KEY_FILE, or from the terminal; never
    /// from .env or an argument.
    Verify {
        /// The directory of a backup, or a database file (default: the data files of the settings).
        path: Option<PathBuf>,
        /// Prompt for the user key.
        #[arg(long)]
        ask_user_key: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Migrate the database of an earlier version while no server runs, as the next start would.
    Migrate {
        /// Try it on a temporary copy, compare all entries, and change nothing.
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Asks the server that runs with these settings whether it serves: 0 if so, else 1 and the reason.
    Healthcheck {
        /// Asks whether clients should be sent to it (/ready instead of /cluster/health).
        #[arg(long)]
        ready: bool,
        /// How long an answer may take.
        #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
        timeout: u64,
    },
}

fn main() -> ExitCode {
    runtime::deny_others();
    if let Err(error) = runtime::survive_file_size_limit() {
        print_error(&format!("cannot handle SIGXFSZ: {error}"));
        return ExitCode::FAILURE;
    }
    match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => with_settings(|config| config.log_file.as_deref(), serve),
        // It leaves everything as it is.
        Command::CheckConfig => with_settings(|_| None, |config, _| check_config(config)),
        Command::Repair { dry_run, .. } => with_settings(|_| None, |config, _| repair(config, dry_run)),
        Command::Backup { directory, json } => {
            maintain(json, |config| maintenance::back_up(config, &directory, json))
        }
        Command::Restore { directory, dry_run, json } => {
            maintain(json, |config| maintenance::restore(config, &directory, dry_run, json))
        }
        Command::Verify { path, ask_user_key, json } => {
            maintain(json, |config| verify(config, path.as_deref(), ask_user_key, json))
        }
        Command::Migrate { dry_run, json } => {
            maintain(json, |config| maintenance::migrate(config, dry_run, json))
        }
        Command::Healthcheck { ready, timeout } => {
            healthcheck(if ready { Probe::IsReady } else { Probe::Serves }, Duration::from_secs(timeout))
        }
    }
}

fn with_settings(
    log_file: fn(&Config) -> Option<&Path>,
    act: impl FnOnce(&Config, Log) -> ExitCode,
) -> ExitCode {
    let (config, warnings) = match config::load() {
        Ok(loaded) => loaded,
        Err(faults) => {
            print_error(&format!("these settings cannot be used:\n{faults}"));
            return if faults.are_passing() { ExitCode::FAILURE } else { ExitCode::from(2) };
        }
    };
    let log = match Log::start(config.log_level, config.log_format, log_file(&config)) {
        Ok(log) => log,
        Err(error) => {
            print_error(&error.to_string());
            return match error {
                LogError::File { is_lasting: true, .. } => ExitCode::from(2),
                // Later there may be one.
                LogError::File { .. } | LogError::Thread(_) => ExitCode::FAILURE,
            };
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    act(&config, log)
}

/// What ends the process is the last thing that is said, so the log ends before.
fn serve(config: &Config, log: Log) -> ExitCode {
    let ended = runtime::run(config, &log);
    drop(log);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn check_config(config: &Config) -> ExitCode {
    let engine = runtime::engine_in_effect(config);
    // A closed pipe is the reader's business.
    writeln!(std::io::stdout(), "{}# engine here: {engine}", config.summary()).ok();
    ExitCode::SUCCESS
}

fn repair(config: &Config, is_trial: bool) -> ExitCode {
    match runtime::repair::versions(config, is_trial) {
        Ok(report) => {
            // A closed pipe is the reader's business.
            write!(std::io::stdout(), "{report}").ok();
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The log goes to standard error, and ends before the result is printed.
fn maintain(is_json: bool, act: impl FnOnce(&Config) -> Outcome) -> ExitCode {
    with_settings(
        |_| None,
        |config, log| {
            let Outcome { output, notes, code } = act(config);
            drop(log);
            for note in notes {
                match is_json {
                    true => drop(writeln!(std::io::stderr(), "{note}")),
                    false => print_error(&note),
                }
            }
            // A closed pipe is the reader's business.
            write!(std::io::stdout(), "{output}").ok();
            ExitCode::from(code)
        },
    )
}

fn verify(config: &Config, path: Option<&Path>, asks: bool, is_json: bool) -> Outcome {
    let user_key = match (config::user_key(), asks) {
        (Err(faults), _) => {
            let message = format!("these settings cannot be used:\n{faults}");
            return maintenance::refuse("usage", 2, &message, is_json);
        }
        (Ok(Some(_)), true) => {
            let message = "--ask-user-key, but OSC_USER_KEY or OSC_USER_KEY_FILE is set: use one of them";
            return maintenance::refuse("usage", 2, message, is_json);
        }
        (Ok(user_key), false) => user_key,
        (Ok(None), true) => match runtime::prompt_user_key() {
            Ok(user_key) => Some(user_key),
            Err(error) => {
                let (name, code) = match &error {
                    PromptError::Io(_) => ("failed", 1),
                    PromptError::NoTerminal | PromptError::Empty => ("declined", 9),
                };
                return maintenance::refuse(name, code, &error.to_string(), is_json);
            }
        },
    };
    maintenance::verify(config, path, user_key.as_ref(), is_json)
}

fn healthcheck(question: Probe, timeout: Duration) -> ExitCode {
    match healthcheck::ask(question, timeout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            print_error(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What ends the process is said plainly, whatever the log level is.
fn print_error(text: &str) {
    writeln!(std::io::stderr(), "opensecureconf: {text}").ok();
}
