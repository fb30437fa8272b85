//! The command line: what to do, and the exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use opensecureconf::config::{self, Config};
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (config, log) = match config::load() {
        Ok((config, warnings)) => {
            let log = match Log::start(config.log_level, config.log_format, config.log_file.as_deref()) {
                Ok(log) => log,
                Err(error) => {
                    complain(&error.to_string());
                    return ExitCode::from(2);
                }
            };
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            (config, log)
        }
        Err(faults) => {
            complain(&format!("these settings cannot be used:\n{faults}"));
            return ExitCode::from(2);
        }
    };
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(&config, log),
        Command::CheckConfig => {
            // A closed pipe is the reader's business.
            let engine = runtime::engine_in_effect(&config);
            writeln!(std::io::stdout(), "{}# engine here: {engine}", config.summary()).ok();
            ExitCode::SUCCESS
        }
    }
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

/// What ends the process is said plainly, whatever the log level is.
fn complain(text: &str) {
    writeln!(std::io::stderr(), "opensecureconf: {text}").ok();
}
