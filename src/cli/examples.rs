//! What each command can be used for: lines that stand in its help and on its manual page, and are parsed by a test.

use clap::Command;

/// What a line does, and the line.
type Example = (&'static str, &'static str);

/// The examples of each command, by its name behind `refshim`.
const EXAMPLES: [(&str, &[Example]); 31] = [
    (
        "serve",
        &[
            ("In front of a registry on this machine", "refshim serve --upstream http://127.0.0.1:5005"),
            ("As a file says; is it right?", "refshim serve --config /etc/refshim/refshim.toml --check"),
        ],
    ),
    ("config check", &[("Before a reload", "refshim config check /etc/refshim/refshim.toml")]),
    ("config show", &[("What is in force, and where it comes from", "refshim config show")]),
    ("config schema", &[("For an editor", "refshim config schema > refshim.schema.json")]),
    ("health", &[("In a container", "refshim health --admin http://127.0.0.1:5001")]),
    (
        "index migrate",
        &[(
            "Before a new version is rolled out",
            "refshim index migrate --url postgres://refshim@db.example/refshim",
        )],
    ),
    ("index check", &[("While it is not served", "refshim index check --data-dir /var/lib/refshim")]),
    (
        "index rebuild",
        &[("When the journal is damaged", "refshim index rebuild --data-dir /var/lib/refshim")],
    ),
    ("index dump", &[("A backup", "refshim index dump --data-dir /var/lib/refshim refshim.jsonl")]),
    ("index load", &[("A backup, restored", "refshim index load --data-dir /var/lib/refshim refshim.jsonl")]),
    (
        "index copy",
        &[(
            "To a database, while it is served",
            "refshim index copy --follow --from /var/lib/refshim --to postgres://refshim@db.example/refshim",
        )],
    ),
    (
        "backfill",
        &[
            ("Everything, by the refshim that serves", "refshim backfill"),
            ("How much would there be to read?", "refshim backfill --dry-run --repository 'team/*'"),
        ],
    ),
    ("export", &[("Into the registry, for clients without refshim", "refshim export --rate 50")]),
    ("gc", &[("What lost its image a month ago", "refshim gc --older-than 30d --delete")]),
    ("coverage", &[("What is not known yet", "refshim coverage --incomplete")]),
    (
        "compare",
        &[(
            "Does the registry list the same?",
            "refshim compare --sample 1000 --upstream https://registry.example",
        )],
    ),
    (
        "ref",
        &[(
            "A copy that refers to v1",
            "refshim ref registry.example/app:v1 registry.example/app:v1-approved",
        )],
    ),
    (
        "attach",
        &[
            (
                "An SBOM",
                "refshim attach registry.example/app:v1 sbom.json:application/spdx+json --artifact-type \
                 application/spdx+json",
            ),
            (
                "What another program writes",
                "trivy image --format sarif registry.example/app:v1 | refshim attach registry.example/app:v1 \
                 --artifact-type application/sarif+json -- -:application/sarif+json",
            ),
        ],
    ),
    (
        "references",
        &[
            ("The newest SBOM", "refshim references registry.example/app:v1 --artifact-type sbom --latest"),
            (
                "In a script: is it signed?",
                "refshim references registry.example/app:v1 --artifact-type signature --exit-code --quiet > /dev/null",
            ),
            (
                "In a form of its own",
                "refshim references registry.example/app:v1 --format 'template={{ reference }} {{ artifactType }}'",
            ),
        ],
    ),
    (
        "tree",
        &[
            ("All that is attached, and to that", "refshim tree registry.example/app:v1"),
            ("Also in other repositories", "refshim tree registry.example/app:v1 --scope registry"),
        ],
    ),
    (
        "fetch",
        &[
            (
                "To another program",
                "refshim fetch registry.example/app:v1 --artifact-type sbom --latest -o - | jq .packages",
            ),
            (
                "What refshim tree printed",
                "refshim fetch registry.example/app:v1 --referrer sha256:51c04ab8d3e6 -o found",
            ),
            ("Everything", "refshim fetch registry.example/app:v1 --all -o found"),
        ],
    ),
    (
        "verify-references",
        &[("Is everything as listed?", "refshim verify-references registry.example/app:v1")],
    ),
    (
        "copy",
        &[
            (
                "With its signatures and SBOMs",
                "refshim copy --references registry.example/app:v1 mirror.example/app:v1",
            ),
            ("Without a network between", "refshim copy --references registry.example/app:v1 oci:app:v1"),
            (
                "As two users",
                "refshim copy registry.example/app:v1 mirror.example/app --from-username alice --from-password-file a \
                 --to-username bob --to-password-file b",
            ),
        ],
    ),
    (
        "detach",
        &[("One of those that are listed", "refshim detach registry.example/app:v1 sha256:51c04ab8d3e6")],
    ),
    ("tags", &[("Of a repository", "refshim tags registry.example/app")]),
    ("resolve", &[("To pin it", "refshim resolve registry.example/app:v1")]),
    (
        "login",
        &[
            ("On a terminal", "refshim login registry.example"),
            ("In a script", "refshim login registry.example --username ci --password-stdin < password"),
        ],
    ),
    ("logout", &[("Everywhere where it is kept", "refshim logout registry.example")]),
    ("version", &[("For a program", "refshim version --json")]),
    ("completions", &[("For this shell", "refshim completions bash > /etc/bash_completion.d/refshim")]),
    ("man", &[("For man(1)", "refshim man /usr/local/share/man/man1")]),
];

/// The examples of a command.
pub(super) fn of(name: &str) -> &'static [Example] {
    EXAMPLES.iter().find(|(of, _)| *of == name).map_or(&[], |(_, examples)| examples)
}

/// The command and those below it, each with its examples in its help.
pub(super) fn given_to(command: Command) -> Command {
    below(command, "")
}

fn below(command: Command, above: &str) -> Command {
    command.mut_subcommands(|command| {
        let name = format!("{above} {}", command.get_name());
        let examples = of(name.trim_start());
        let command = below(command, &name);
        if examples.is_empty() {
            return command;
        }
        let lines = examples.iter().map(|(what, line)| format!("  # {what}\n  {line}"));
        command.after_help(format!("Examples:\n{}", lines.collect::<Vec<_>>().join("\n")))
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use super::*;
    use crate::cli::Cli;

    /// The words of a line as a shell makes them, up to a pipe or a redirection.
    fn words(line: &str) -> Vec<String> {
        let ours = line.split(" | ").find(|part| part.starts_with("refshim ")).unwrap();
        let ours = ours.split(" > ").next().unwrap().split(" < ").next().unwrap();
        let script = format!("for word in {ours}; do printf '%s\\n' \"$word\"; done");
        let output = Process::new("sh").arg("-fc").arg(script).output().unwrap();
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_command_has_examples_and_each_can_be_typed() {
        fn check(command: &Command, name: &str) {
            let below: Vec<_> =
                command.get_subcommands().filter(|below| below.get_name() != "help").collect();
            for command in &below {
                check(command, format!("{name} {}", command.get_name()).trim_start());
            }
            if below.is_empty() {
                assert!(!of(name).is_empty(), "{name}");
            }
        }
        check(&Cli::described(), "");
        for (name, examples) in EXAMPLES {
            for (_, line) in examples {
                let words = words(line);
                assert!(words.join(" ").starts_with(&format!("refshim {name}")), "{line}");
                let typed = Cli::described().try_get_matches_from(words);
                assert!(typed.is_ok(), "{line}: {}", typed.unwrap_err());
            }
        }
    }
}
