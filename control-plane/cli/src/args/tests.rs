use super::*;

fn help(of: &[&str]) -> String {
    let mut command = command().term_width(100);
    command.build();
    let mut current = &mut command;
    for name in of {
        current = current.find_subcommand_mut(name).unwrap();
    }
    current.render_long_help().to_string()
}

#[test]
fn the_parser_has_no_contradictions() {
    command().debug_assert();
}

#[test]
fn every_command_is_in_one_group() {
    let mut grouped: Vec<_> = GROUPS
        .iter()
        .flat_map(|(_, names)| names.iter().map(|name| (*name).to_owned()))
        .collect();
    let mut known: Vec<_> = command()
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    grouped.sort();
    known.sort();
    assert_eq!(grouped, known);
}

#[test]
fn help_is_grouped_by_audience() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn help_of_every_command() {
    let mut all = String::new();
    for top in command().get_subcommands() {
        let names: Vec<_> = top
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        if names.is_empty() {
            all += &format!("===== {0}\n{1}\n", top.get_name(), help(&[top.get_name()]));
        }
        for name in names {
            all += &format!(
                "===== {0} {name}\n{1}\n",
                top.get_name(),
                help(&[top.get_name(), &name])
            );
        }
    }
    insta::assert_snapshot!(all);
}

#[test]
fn no_option_takes_a_secret_value() {
    fn check(command: &clap::Command) {
        for arg in command.get_arguments() {
            let name = arg.get_id().as_str();
            // `login --token` is for short-lived tokens; its help names the option to use instead.
            let allowed = command.get_name() == "login" && name == "token";
            let secret = ["secret", "password", "passphrase", "token"].contains(&name);
            assert!(allowed || !secret, "{name} would be in `ps`");
        }
        command.get_subcommands().for_each(check);
    }
    check(&command());
}

#[test]
fn spans_of_time() {
    assert_eq!(seconds("90s"), Ok(90));
    assert_eq!(seconds("1h"), Ok(3600));
    assert_eq!(seconds("7"), Ok(7));
    for bad in [
        "",
        "h",
        "0s",
        "-1s",
        "1w",
        "1.5h",
        "99999999999999999999d",
        "999999999999999999d",
    ] {
        assert!(seconds(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_span_is_shown_as_it_is_typed() {
    for text in ["60s", "90s", "1h", "25h", "90m", "2d"] {
        let secs = seconds(text).unwrap();
        assert_eq!(seconds(&span(secs)), Ok(secs));
    }
    assert_eq!((span(3600).as_str(), span(90).as_str()), ("1h", "90s"));
    assert_eq!((span(60).as_str(), span(172_800).as_str()), ("1m", "2d"));
}
