//! The shipped binary under another name: a test does not build binaries of other packages.

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::main()
}
