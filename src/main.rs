//! The command line: what to do, and the exit code.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use opensecureconf::config::{self, Config};
use opensecureconf::healthcheck::{self, Question};
use opensecureconf::runtime;
use opensecureconf::telemetry::Log;

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

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Runs the server until SIGTERM or SIGINT (the default).
    Serve,
    /// Checks the settings, prints them without their secrets, and ends.
    CheckConfig,
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
    match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => with_settings(|config| config.log_file.as_deref(), serve),
        // It leaves everything as it is.
        Command::CheckConfig => with_settings(|_| None, |config, _| check_config(config)),
        Command::Healthcheck { ready, timeout } => healthcheck(
            if ready { Question::IsReady } else { Question::Serves },
            Duration::from_secs(timeout),
        ),
    }
}

fn with_settings(log_file: fn(&Config) -> Option<&Path>, act: fn(&Config, Log) -> ExitCode) -> ExitCode {
    let (config, warnings) = match config::load() {
        Ok(loaded) => loaded,
        Err(faults) => {
            complain(&format!("these settings cannot be used:\n{faults}"));
            return ExitCode::from(2);
        }
    };
    let log = match Log::start(config.log_level, config.log_format, log_file(&config)) {
        Ok(log) => log,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(2);
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
            complain(&error.to_string());
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

fn healthcheck(question: Question, timeout: Duration) -> ExitCode {
    match healthcheck::ask(question, timeout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What ends the process is said plainly, whatever the log level is.
fn complain(text: &str) {
    writeln!(std::io::stderr(), "opensecureconf: {text}").ok();
}
