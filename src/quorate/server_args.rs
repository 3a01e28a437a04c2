//! The flags of `quorate server`: one for every setting of a node, made from the list of settings,
//! so that name, default and range stand in one place.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use quorate_config::{KEYS, Key};

const CONFIG: &str = "config";
const PRINT: &str = "print-config";
const WITH_PARENT: &str = "exit-with-parent";

/// `quorate server`.
#[derive(Debug)]
pub struct ServerArgs {
    /// A TOML file with settings.
    pub config: Option<PathBuf>,
    /// Show the settings in force and end.
    pub print_config: bool,
    /// End when stdin is closed.
    pub exit_with_parent: bool,
    /// The settings that were given as flags.
    pub settings: Vec<(&'static str, String)>,
}

fn setting(key: &'static Key) -> Arg {
    let range = key.kind.to_string();
    let mut notes = Vec::new();
    if let Some(default) = key.default {
        notes.push(format!("default: {default}"));
    }
    if !range.is_empty() {
        notes.push(range);
    }
    notes.push(format!("env: {}", key.variable()));
    Arg::new(key.name)
        .long(key.name)
        .value_name(key.kind.placeholder())
        .help(format!("{} [{}]", key.help, notes.join("; ")))
        .hide(key.hidden)
}

impl Args for ServerArgs {
    fn augment_args(command: Command) -> Command {
        let command = command
            .arg(
                Arg::new(CONFIG)
                    .long(CONFIG)
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help(
                        "A TOML file with settings by these names; the environment and flags win \
                         over it [env: QUORATE_CONFIG]",
                    )
                    .env("QUORATE_CONFIG")
                    .hide_env(true),
            )
            .arg(
                Arg::new(PRINT)
                    .long(PRINT)
                    .action(ArgAction::SetTrue)
                    .help("Show the settings in force and where each came from, and end"),
            )
            .arg(
                Arg::new(WITH_PARENT)
                    .long(WITH_PARENT)
                    .action(ArgAction::SetTrue)
                    .hide(true)
                    .help("End at once when stdin is closed: the starting process has died"),
            );
        KEYS.iter()
            .fold(command, |command, key| command.arg(setting(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServerArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &'static Key| {
            let value = matches.get_one::<String>(key.name)?;
            Some((key.name, value.clone()))
        };
        Ok(Self {
            config: matches.get_one::<PathBuf>(CONFIG).cloned(),
            print_config: matches.get_flag(PRINT),
            exit_with_parent: matches.get_flag(WITH_PARENT),
            settings: KEYS.iter().filter_map(given).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
