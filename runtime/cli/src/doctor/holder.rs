//! Which process holds an XDP program: the kernel tells it of each process's descriptors, to whoever may look.

use std::fs;

/// Processes that hold a descriptor of the program, or of the link that attaches it: each its number and name. Those of other users are
/// found by root only.
pub(super) fn of(program: u32) -> Vec<(u32, String)> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let processes = processes.flatten().filter_map(number);
    let holders = processes.filter(|&process| holds(process, program));
    holders.map(|process| (process, name(process))).collect()
}

/// A process may end meanwhile: then it holds nothing.
fn holds(process: u32, program: u32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fdinfo")) else {
        return false;
    };
    let says = |entry: fs::DirEntry| fs::read_to_string(entry.path()).ok();
    let mut infos = descriptors.flatten().filter_map(says);
    infos.any(|info| names(&info, program))
}

fn names(info: &str, program: u32) -> bool {
    let ids = info
        .lines()
        .filter_map(|line| line.strip_prefix("prog_id:"));
    ids.into_iter().any(|id| id.trim().parse() == Ok(program))
}

fn name(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm"));
    name.map_or_else(|_| "gone".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_names_its_program() {
        let link =
            "pos:\t0\nlink_type:\txdp\nlink_id:\t4\nprog_tag:\tabc\nprog_id:\t17\nifindex:\t3\n";
        assert!(names(link, 17));
        assert!(!names(link, 1) && !names(link, 4) && !names("pos:\t0\n", 0));
    }

    #[test]
    fn nobody_holds_a_program_that_is_not_there() {
        assert_eq!(of(u32::MAX), []);
    }
}
