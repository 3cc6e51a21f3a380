//! One line of the report.

use serde::Serialize;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it has to be.
    Ok,
    /// It works, and could be better, or is worth knowing.
    Note,
    /// Something does not work.
    Problem,
    /// It could not be looked at.
    Skipped,
}

impl Verdict {
    pub(super) fn text(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Problem => "problem",
            Verdict::Skipped => "skipped",
        }
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// `host`, or the name of the interface.
    pub(super) part: String,
    /// What was looked at.
    pub(super) name: &'static str,
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) says: String,
    /// The command that mends or betters it; words where there is no such command.
    pub(super) mend: Option<String>,
}

impl Finding {
    fn new(name: &'static str, verdict: Verdict, says: impl Into<String>) -> Finding {
        Finding {
            part: "host".into(),
            name,
            verdict,
            says: says.into(),
            mend: None,
        }
    }

    pub(super) fn ok(name: &'static str, says: impl Into<String>) -> Finding {
        Finding::new(name, Verdict::Ok, says)
    }

    pub(super) fn note(name: &'static str, says: impl Into<String>) -> Finding {
        Finding::new(name, Verdict::Note, says)
    }

    /// A problem comes with what mends it.
    pub(super) fn problem(
        name: &'static str,
        says: impl Into<String>,
        mend: impl Into<String>,
    ) -> Finding {
        Finding::new(name, Verdict::Problem, says).mended_by(mend)
    }

    pub(super) fn skipped(name: &'static str, says: impl Into<String>) -> Finding {
        Finding::new(name, Verdict::Skipped, says)
    }

    pub(super) fn mended_by(mut self, mend: impl Into<String>) -> Finding {
        self.mend = Some(mend.into());
        self
    }

    /// It is about an interface.
    pub(super) fn of(mut self, interface: &str) -> Finding {
        self.part = interface.into();
        self
    }
}
