//! Command line: subcommands and exit codes.

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
    /// Run the server until SIGTERM or SIGINT (the default).
    Serve,
    /// Validate the settings and print them without secrets.
    CheckConfig,
    /// Repair what keeps this node out of its cluster, while the server is stopped, and print the changes.
    Repair {
        /// Reset versions that are ahead of the clock, which other nodes refuse, to the current time.
        #[arg(long, required = true)]
        versions: bool,
        /// Print what would be changed, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Back up the database and the salt, and verify the copy; the server may be running.
    Backup {
        /// Directory of this backup: empty, or not existing yet.
        directory: PathBuf,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Restore a backup while the server is stopped; the current files are kept under another name.
    Restore {
        /// Directory of the backup.
        directory: PathBuf,
        /// Check everything and change nothing.
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Verify the database, the salt and each token; with a user key, also count the entries it decrypts.
    ///
    /// The user key is read from OSC_USER_KEY, from the first line of OSC_USER_KEY_FILE, or from the terminal; never
    /// from .env or an argument.
    Verify {
        /// Directory of a backup, or a database file (default: the data files in the settings).
        path: Option<PathBuf>,
        /// Prompt for the user key.
        #[arg(long)]
        ask_user_key: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Migrate the database of an earlier release while the server is stopped, as its next start would.
    Migrate {
        /// Migrate a temporary copy, compare all entries, and change nothing.
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check whether the server with these settings is serving; exit 0 if so, otherwise print the reason and exit 1.
    Healthcheck {
        /// Check whether the server is ready for clients (/ready instead of /cluster/health).
        #[arg(long)]
        ready: bool,
        /// Response timeout.
        #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
        timeout: u64,
    },
}

fn main() -> ExitCode {
    runtime::restrict_umask();
    if let Err(error) = runtime::survive_file_size_limit() {
        print_error(&format!("cannot install the SIGXFSZ handler: {error}"));
        return ExitCode::FAILURE;
    }
    match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => with_settings(|config| config.log_file.as_deref(), serve),
        // Changes no file, so it does not open the log file either.
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
        Err(errors) => {
            print_error(&format!("invalid configuration:\n{errors}"));
            return if errors.are_transient() { ExitCode::FAILURE } else { ExitCode::from(2) };
        }
    };
    let log = match Log::start(config.log_level, config.log_format, log_file(&config)) {
        Ok(log) => log,
        Err(error) => {
            print_error(&error.to_string());
            return match error {
                LogError::File { is_lasting: true, .. } => ExitCode::from(2),
                // May be transient: a supervisor should restart the server.
                LogError::File { .. } | LogError::Thread(_) => ExitCode::FAILURE,
            };
        }
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    act(&config, log)
}

/// Runs the server. The log is flushed before the fatal error is printed, so that the error is the last line.
fn serve(config: &Config, log: Log) -> ExitCode {
    let outcome = runtime::run(config, &log);
    drop(log);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn check_config(config: &Config) -> ExitCode {
    let engine = runtime::engine_in_effect(config);
    // A closed pipe is not an error of the command.
    writeln!(std::io::stdout(), "{}# engine on this machine: {engine}", config.summary()).ok();
    ExitCode::SUCCESS
}

fn repair(config: &Config, is_trial: bool) -> ExitCode {
    match runtime::repair::versions(config, is_trial) {
        Ok(report) => {
            // A closed pipe is not an error of the command.
            write!(std::io::stdout(), "{report}").ok();
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Runs a maintenance command. The log goes to standard error, and is flushed before the result is printed.
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
            // A closed pipe is not an error of the command.
            write!(std::io::stdout(), "{output}").ok();
            ExitCode::from(code)
        },
    )
}

fn verify(config: &Config, path: Option<&Path>, asks_user_key: bool, is_json: bool) -> Outcome {
    let user_key = match (config::user_key(), asks_user_key) {
        (Err(errors), _) => {
            let message = format!("invalid configuration:\n{errors}");
            return maintenance::refuse("usage", 2, &message, is_json);
        }
        (Ok(Some(_)), true) => {
            let message = "--ask-user-key cannot be combined with OSC_USER_KEY or OSC_USER_KEY_FILE";
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

fn healthcheck(probe: Probe, timeout: Duration) -> ExitCode {
    match healthcheck::run(probe, timeout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Prints a fatal error to standard error, independently of the log level.
fn print_error(text: &str) {
    writeln!(std::io::stderr(), "opensecureconf: {text}").ok();
}
