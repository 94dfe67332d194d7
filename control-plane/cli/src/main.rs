//! casemate: the command line for operators and tenants.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use casemate::error::{Code, Error};
use casemate::output::Output;

fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    if let Some(text) = casemate::complete::answer(&typed) {
        // A shell that has closed its end needs no completions.
        let _ = std::io::stdout().write_all(&text);
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(casemate::commands::run(typed));
            // A bundler's thread or an open connection must not delay the end of the program.
            runtime.shutdown_background();
            ExitCode::from(code)
        }
        Err(error) => {
            let what = "the program cannot start its threads";
            let error =
                Error::new(Code::Io, what, "check the limits of this machine").source(error);
            Output::new(false, false).error(&error);
            ExitCode::from(error.code().exit())
        }
    }
}
