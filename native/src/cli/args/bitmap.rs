use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{OpenArgs, OutputArgs};

/// `bitmap`.
#[derive(Debug, Clone, Args)]
pub(crate) struct BitmapArgs {
    #[command(flatten)]
    pub(crate) actions: BitmapActions,
    /// Granularity of --add: a power of two from 512 bytes to 2 GiB [default: the cluster size, within 4k and 64k]
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) granularity: Option<String>,
    /// Take the bitmap of --merge from this image
    #[arg(short = 'b', long, value_name = "FILE", allow_hyphen_values = true)]
    pub(crate) source_file: Option<OsString>,
    /// Format of that image, instead of looking
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) source_format: Option<String>,
    /// List the bitmaps, with what is marked in them, and what is wrong with them
    #[arg(short, long)]
    pub(crate) list: bool,
    /// Remove what cannot be used: bitmaps, or a whole directory, that break the rules of the format
    #[arg(long)]
    pub(crate) remove_broken: bool,
    /// With --remove-broken: also remove bitmaps that are marked as in use, because a program died while it wrote
    #[arg(long)]
    pub(crate) in_use: bool,
    /// With --remove-broken: change nothing, and tell what would be removed
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// Format of the image, instead of looking
    #[arg(short, long, value_name = "FORMAT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// The image, and the name of the bitmap
    #[arg(value_names = ["FILE", "BITMAP"], num_args = 0..)]
    pub(crate) files: Vec<OsString>,
}

/// One change of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BitmapAction {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl BitmapAction {
    /// The action as messages name it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

/// The changes in the order in which they were given.
#[derive(Debug, Clone, Default)]
pub(crate) struct BitmapActions(pub(crate) Vec<BitmapAction>);

const PLAIN: [(&str, &str, BitmapAction); 5] = [
    ("add", "Make the bitmap; it records changes of the disk from now on", BitmapAction::Add),
    ("remove", "Remove the bitmap", BitmapAction::Remove),
    ("clear", "Remove all marks of the bitmap", BitmapAction::Clear),
    ("enable", "Let the bitmap record changes of the disk", BitmapAction::Enable),
    ("disable", "Let the bitmap record no more changes", BitmapAction::Disable),
];

impl Args for BitmapActions {
    fn augment_args(command: Command) -> Command {
        let plain = PLAIN.into_iter().map(|(name, help, _)| {
            Arg::new(name).long(name).help(help).num_args(0).default_missing_value("yes").action(ArgAction::Append)
        });
        let merge = Arg::new("merge")
            .long("merge")
            .help("Add the marks of another bitmap")
            .value_name("SOURCE")
            .allow_hyphen_values(true)
            .action(ArgAction::Append);
        command.args(plain).arg(merge)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for BitmapActions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found: Vec<(usize, BitmapAction)> = Vec::new();
        for (name, _, action) in PLAIN {
            let given = matches.indices_of(name).into_iter().flatten();
            found.extend(given.map(|index| (index, action.clone())));
        }
        let sources = matches.get_many::<String>("merge").into_iter().flatten();
        let places = matches.indices_of("merge").into_iter().flatten();
        found.extend(places.zip(sources).map(|(index, source)| (index, BitmapAction::Merge(source.clone()))));
        found.sort_by_key(|(index, _)| *index);
        Ok(Self(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Verb};
    use clap::Parser;

    #[test]
    fn changes_keep_their_order() {
        let words = "qcowkit bitmap --clear --merge x --add --merge y --clear --disable a b".split(' ');
        let Verb::Bitmap(args) = Cli::parse_from(words).verb else { panic!("another verb") };
        let merge = |name: &str| BitmapAction::Merge(name.to_owned());
        let expected = [
            BitmapAction::Clear,
            merge("x"),
            BitmapAction::Add,
            merge("y"),
            BitmapAction::Clear,
            BitmapAction::Disable,
        ];
        assert_eq!(args.actions.0, expected);
        assert_eq!(args.files, ["a", "b"]);
    }
}
