//! `quorate log`: looks at the files of a stopped node, and changes none of them.

use std::path::Path;

use quorate_log::Offline;

use crate::cli::Global;
use crate::failure::{Failure, Outcome};
use crate::log_args::LogCommand;
use crate::{log_dump, log_verify};

pub(crate) fn run(global: &Global, command: LogCommand) -> Outcome {
    quiet_store();
    match command {
        LogCommand::Dump(args) => log_dump::run(global.output, &args),
        LogCommand::Verify(args) => log_verify::run(global.output, &args.path),
    }
}

/// Opens what was asked for, or says why not.
pub(crate) fn open(path: &Path) -> Result<Offline, Failure> {
    Offline::open(path).map_err(|error| {
        Failure::new(format!("cannot look at {}", path.display()), error)
            .hint("name the --data-dir of a stopped node, a directory below its logs, or a segment")
    })
}

/// sled panics on some damaged files. That is caught and told as a finding, so its own message,
/// which reads like a fault of this program, is left out.
fn quiet_store() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let of_sled = panic
            .location()
            .is_some_and(|place| place.file().contains("/sled-"));
        if !of_sled {
            usual(panic);
        }
    }));
}
