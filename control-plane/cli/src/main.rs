//! casemate: the command line for operators and tenants.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use casemate::error::{Code, Error};
use casemate::output::Output;

fn main() -> ExitCode {
    let typed = std::env::args_os().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(casemate::commands::run(typed));
            // A bundler's thread or an open connection must not hold the prompt back.
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
