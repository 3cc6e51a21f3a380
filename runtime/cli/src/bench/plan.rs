//! What to measure: the command line, checked, and turned into groups of cells that are measured side by side.

use super::paths;
use super::spec::{Job, Spec, Wait};
use clap::builder::PossibleValuesParser;
use std::time::Duration;

/// The longest message that can be asked for: what every standard path takes in one piece.
const MAX_SIZE: usize = 32 * 1024;
/// Ring depths that a channel can have.
const DEPTHS: std::ops::RangeInclusive<usize> = 2..=65_536;
/// The longest run.
const MAX_SECONDS: f64 = 3600.0;

/// Options of `tightbeam bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Paths to compare, by default all
    #[arg(long, value_delimiter = ',', value_parser = path_names(), value_name = "PATH,...")]
    pub(crate) paths: Vec<String>,
    /// Message sizes of the round trips in bytes
    #[arg(long, value_delimiter = ',', default_values_t = [8, 56, 64, 256, 1024], value_parser = parse_size, value_name = "BYTES,...")]
    pub(crate) sizes: Vec<usize>,
    /// Message sizes of the one-way rates in bytes
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 64, 1024], value_parser = parse_size, value_name = "BYTES,...")]
    pub(crate) rate_sizes: Vec<usize>,
    /// How receivers wait
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Wait::Spin, Wait::Block], value_name = "MODE,...")]
    pub(crate) wait: Vec<Wait>,
    /// What to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Job::PingPong, Job::Rate, Job::Call], value_name = "JOB,...")]
    pub(crate) jobs: Vec<Job>,
    /// CPUs of the two processes, by default two of different cores
    #[arg(long, value_parser = parse_cpus, value_name = "A,B")]
    pub(crate) cpus: Option<[usize; 2]>,
    /// Time for the whole table in seconds, divided over its rows
    #[arg(long, default_value_t = 40.0, value_parser = parse_seconds, allow_negative_numbers = true)]
    pub(crate) seconds: f64,
    /// Ring depth of Tightbeam's own path, a power of two
    #[arg(long, value_parser = parse_depth)]
    pub(crate) depth: Option<usize>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

fn path_names() -> PossibleValuesParser {
    let mut names: Vec<&str> = paths::ALL.iter().map(|path| path.family()).collect();
    names.dedup();
    PossibleValuesParser::new(names)
}

fn parse_size(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
        _ => Err(format!("a size is a number of bytes from 1 to {MAX_SIZE}")),
    }
}

pub(super) fn parse_cpus(text: &str) -> Result<[usize; 2], String> {
    let numbers: Option<Vec<usize>> = text
        .split(',')
        .map(|part| part.trim().parse().ok())
        .collect();
    match numbers.as_deref() {
        Some(&[first, second]) => Ok([first, second]),
        _ => Err("two CPU numbers are needed, as in 0,1".into()),
    }
}

pub(super) fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX_SECONDS => Ok(seconds),
        _ => Err(format!(
            "a time is a number of seconds above 0 and up to {MAX_SECONDS}"
        )),
    }
}

fn parse_depth(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(depth) if DEPTHS.contains(&depth) && depth.is_power_of_two() => Ok(depth),
        _ => Err(format!(
            "a ring depth is a power of two from {} to {}",
            DEPTHS.start(),
            DEPTHS.end()
        )),
    }
}

/// Cells that are measured side by side, and how long.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) job: Job,
    pub(crate) cells: Vec<Spec>,
    pub(crate) budget: Duration,
}

impl Group {
    /// For the progress bar.
    pub(crate) fn title(&self) -> String {
        let Some(first) = self.cells.first() else {
            return String::new();
        };
        match self.job {
            Job::PingPong => format!("round trips, {} B, {}", first.size, first.wait),
            Job::Call => format!("calls, {}", first.wait),
            Job::Rate => format!("rate, {} B", first.size),
            Job::Load => format!("load, {} B", first.size),
        }
    }
}

/// All groups, in the order of the tables.
pub(crate) fn groups(args: &BenchArgs) -> Vec<Group> {
    let mut cells = Vec::new();
    for &job in &args.jobs {
        match job {
            Job::PingPong => {
                for &wait in &args.wait {
                    cells.extend(
                        args.sizes
                            .iter()
                            .map(|&size| (job, cells_of(args, job, Some(size), &[wait]))),
                    );
                }
            }
            Job::Call => cells.extend(
                args.wait
                    .iter()
                    .map(|&wait| (job, cells_of(args, job, None, &[wait]))),
            ),
            Job::Load => {}
            Job::Rate => {
                cells.extend(
                    args.rate_sizes
                        .iter()
                        .map(|&size| (job, cells_of(args, job, Some(size), &args.wait))),
                );
            }
        }
    }
    let all: usize = cells.iter().map(|(_, cells)| cells.len()).sum();
    cells
        .into_iter()
        .filter(|(_, cells)| !cells.is_empty())
        .map(|(job, cells)| {
            let share = cells.len() as f64 / all as f64;
            Group {
                job,
                budget: Duration::from_secs_f64(args.seconds * share),
                cells,
            }
        })
        .collect()
}

/// The chosen paths that do this job in one of these ways. Without a size each path has its own for a null call.
fn cells_of(args: &BenchArgs, job: Job, size: Option<usize>, waits: &[Wait]) -> Vec<Spec> {
    let chosen = |name: &str| args.paths.is_empty() || args.paths.iter().any(|path| path == name);
    let mut cells = Vec::new();
    for path in paths::ALL.iter().filter(|path| chosen(path.family())) {
        for &wait in waits.iter().filter(|wait| path.does(job, **wait)) {
            cells.push(Spec {
                path: path.name().into(),
                job,
                size: size.unwrap_or_else(|| path.call_size()),
                wait,
                depth: args.depth,
                shared_cpu: false,
            });
        }
    }
    cells
}

/// Chosen paths that do nothing of what was asked for.
pub(crate) fn idle_paths(args: &BenchArgs, groups: &[Group]) -> Vec<String> {
    let busy = |name: &str| {
        groups
            .iter()
            .flat_map(|group| &group.cells)
            .any(|cell| cell.path == name)
    };
    args.paths
        .iter()
        .filter(|name| !busy(name))
        .cloned()
        .collect()
}

/// Why the CPUs asked for cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CpuError {
    #[error("there is no CPU {missing} for this process; it may run on: {}", list(.allowed))]
    Missing { missing: usize, allowed: Vec<usize> },
    #[error("this process may run on no CPU at all, says the kernel")]
    None,
}

fn list(cpus: &[usize]) -> String {
    cpus.iter()
        .map(usize::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The CPUs to use: those asked for, or else two, of different cores if `together` says that there are such.
pub(crate) fn choose_cpus(
    asked: Option<[usize; 2]>,
    allowed: &[usize],
    together: impl Fn(usize, usize) -> bool,
) -> Result<[usize; 2], CpuError> {
    if let Some(cpus) = asked {
        return match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(&missing) => Err(CpuError::Missing {
                missing,
                allowed: allowed.to_vec(),
            }),
            None => Ok(cpus),
        };
    }
    let &first = allowed.first().ok_or(CpuError::None)?;
    let mut others = allowed.iter().copied().skip(1);
    let apart = others.clone().find(|&other| !together(first, other));
    let second = apart.or_else(|| others.next()).unwrap_or(first);
    Ok([first, second])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Cli::try_parse_from(words)
            .map(|cli| cli.bench)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_default_is_the_whole_table() {
        let args = parse("").unwrap();
        assert_eq!(
            (args.sizes.as_slice(), args.seconds, args.depth),
            ([8, 56, 64, 256, 1024].as_slice(), 40.0, None)
        );
        let groups = groups(&args);
        let total: Duration = groups.iter().map(|group| group.budget).sum();
        assert!((total.as_secs_f64() - 40.0).abs() < 0.01);
        let has = |job, name: &str, wait| {
            groups
                .iter()
                .filter(|group| group.job == job)
                .flat_map(|group| &group.cells)
                .any(|cell| cell.path == name && cell.wait == wait)
        };
        for path in [
            "shm",
            "pipe",
            "unix-stream",
            "unix-seqpacket",
            "tcp",
            "udp",
            "udp-io_uring",
        ] {
            for job in [Job::PingPong, Job::Call, Job::Rate] {
                assert!(
                    has(job, path, Wait::Spin) && has(job, path, Wait::Block),
                    "{path} {job:?}"
                );
            }
        }
        assert!(
            has(Job::PingPong, "futex", Wait::Block) && !has(Job::PingPong, "futex", Wait::Spin)
        );
        assert!(
            has(Job::Rate, "tcp-coalesced", Wait::Block)
                && !has(Job::PingPong, "tcp-coalesced", Wait::Block)
        );
    }

    #[test]
    fn a_path_brings_its_coalesced_variant() {
        let args = parse("--paths pipe --wait block --jobs rate --rate-sizes 32").unwrap();
        let groups = groups(&args);
        let names: Vec<_> = groups[0]
            .cells
            .iter()
            .map(|cell| cell.path.as_str())
            .collect();
        assert_eq!((groups.len(), names), (1, vec!["pipe", "pipe-coalesced"]));
    }

    #[test]
    fn a_path_that_does_nothing_is_named() {
        let args = parse("--paths futex,pipe --wait spin").unwrap();
        assert_eq!(idle_paths(&args, &groups(&args)), ["futex"]);
    }

    #[test]
    fn wrong_arguments_say_what_would_be_right() {
        for (line, words) in [
            ("--paths smoke", "possible values: shm, futex, pipe"),
            ("--sizes 0", "from 1 to"),
            ("--sizes many", "from 1 to"),
            ("--wait nap", "possible values: spin, block"),
            ("--cpus 1", "two CPU numbers"),
            ("--cpus 0,1,2", "two CPU numbers"),
            ("--seconds 0", "above 0"),
            ("--seconds nan", "above 0"),
            ("--depth 100", "power of two from 2 to 65536"),
            ("--depth 131072", "power of two"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(words), "{line}: {message}");
        }
    }

    #[test]
    fn cpus_are_those_asked_for_or_two_cores() {
        let pairs = |a: usize, b: usize| a / 2 == b / 2;
        assert_eq!(choose_cpus(None, &[0, 1, 2, 3], pairs), Ok([0, 2]));
        assert_eq!(choose_cpus(None, &[0, 1], pairs), Ok([0, 1]));
        assert_eq!(choose_cpus(None, &[3], pairs), Ok([3, 3]));
        assert_eq!(choose_cpus(Some([1, 1]), &[0, 1], pairs), Ok([1, 1]));
        let error = choose_cpus(Some([0, 9]), &[0, 1], pairs).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no CPU 9 for this process; it may run on: 0, 1"
        );
        assert_eq!(choose_cpus(None, &[], pairs), Err(CpuError::None));
    }
}
