//! Reads the command line: which flags are shown where, and how wrong usage is told.

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::Cli;

/// The commands as they are shown: a flag for all is hidden where it means nothing.
pub fn command() -> clap::Command {
    let mut shown = Cli::command();
    for (name, flags) in [
        ("dev", &["bootstrap"][..]),
        ("server", &["bootstrap"]),
        ("log", &["bootstrap"]),
        ("completions", &["bootstrap", "output"]),
    ] {
        for flag in flags {
            let found = shown.get_arguments().find(|arg| arg.get_id() == *flag);
            if let Some(hidden) = found.map(|arg| arg.clone().hide(true)) {
                shown = shown.mut_subcommand(name, |command| command.arg(hidden));
            }
        }
    }
    shown
}

/// Reads the command line; what is wrong, and what is only to be shown, ends the process.
pub fn read() -> Cli {
    let parsed = |command: clap::Command| {
        let matches = command.try_get_matches()?;
        Cli::from_arg_matches(&matches)
    };
    parsed(command()).unwrap_or_else(|error| {
        if error.use_stderr() {
            // Told again without the variables: the usage would show flags that nobody typed.
            let unset = |arg: clap::Arg| arg.env(Resettable::Reset);
            let typed = command()
                .mut_arg("bootstrap", unset)
                .mut_arg("output", unset);
            if let Err(plainer) = parsed(typed) {
                plainer.exit();
            }
        }
        error.exit()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{AcksArg, Command, OutputFormat};

    fn typed(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("quorate").chain(line.split(' '));
        let matches = command().try_get_matches_from(words);
        matches
            .and_then(|matches| Cli::from_arg_matches(&matches))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_commands_are_well_made_though_flags_are_hidden() {
        command().debug_assert();
        let help = |line| typed(line).unwrap_err();
        assert!(help("topic list --help").contains("--bootstrap"));
        for line in ["dev kill --help", "server --help", "log verify --help"] {
            assert!(!help(line).contains("--bootstrap"), "{line}");
            assert!(help(line).contains("--output"), "{line}");
        }
        let cli = typed("--bootstrap a:1 dev kill 2 --output json").unwrap();
        assert_eq!(cli.global.bootstrap[0].to_string(), "a:1");
        assert_eq!(cli.global.output, OutputFormat::Json);
    }

    #[test]
    fn offsets_are_reset_to_one_place() {
        let line = "group reset-offsets g --topic t";
        let taken = |more: &str| typed(&format!("{line} {more}")).is_ok();
        for one in [
            "--to-offset 7",
            "--to-earliest --dry-run",
            "--to-latest --partition 1 --partition 2",
            "--to-timestamp 2026-01-31T12:00:00Z",
            "--shift-by -100",
        ] {
            assert!(taken(one), "{one}");
        }
        for wrong in [
            "--dry-run",
            "--to-earliest --to-latest",
            "--to-offset -1",
            "--to-timestamp yesterday",
        ] {
            assert!(!taken(wrong), "{wrong}");
        }
        assert!(typed("group delete").is_err());
    }

    #[test]
    fn kafkas_habits_are_taken_or_answered() {
        let Command::Produce(args) = typed("produce t --acks -1").unwrap().command else {
            panic!("that is another command");
        };
        assert_eq!(args.acks, AcksArg::All);
        for (line, says) in [
            ("topic create --topic t", "stands without a flag"),
            ("topic describe --topic t", "stands without a flag"),
            ("log verify --data-dir d", "stands without a flag"),
        ] {
            let told = typed(line).unwrap_err();
            assert!(told.contains(says), "{told}");
        }
    }
}
