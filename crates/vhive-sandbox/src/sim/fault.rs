//! What a simulated sandbox shall do: times and faults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SimConfig;

/// A step of a simulated start, or of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The VMM's process is started.
    Spawn,
    /// The kernel boots.
    Boot,
    /// Init starts the function.
    Init,
    /// The sandbox is written into a snapshot.
    Checkpoint,
    /// A clone is made from a snapshot.
    Restore,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spawn => "spawn",
            Self::Boot => "boot",
            Self::Init => "init",
            Self::Checkpoint => "checkpoint",
            Self::Restore => "restore",
        })
    }
}

/// What goes wrong. Written `fail:boot`, `panic:init`, `hang:spawn`, `exit-at-once:3`,
/// `never-listen`, `mute`, `exit-after:5`, `crash-at:1`, `lost-at-checkpoint`, `refuse-state`,
/// `deaf-restored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The step fails.
    FailAt(Step),
    /// The code that takes the step panics.
    PanicAt(Step),
    /// The step never ends.
    HangAt(Step),
    /// The function ends with this code as soon as it has been started.
    ExitAtOnce(i32),
    /// The function never listens.
    NeverListen,
    /// The function takes requests and never answers.
    Mute,
    /// The function ends with code 0 after so many replies.
    ExitAfter(u64),
    /// The sandbox vanishes halfway through this reply, counting from 1.
    CrashAt(u64),
    /// A checkpoint fails and the sandbox does not go on.
    LostAtCheckpoint,
    /// A restore does not take the saved state.
    RefuseState,
    /// A restored function does not listen.
    DeafRestored,
}

/// The text names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown fault {0:?}; known: fail:STEP, panic:STEP, hang:STEP (STEP = spawn, boot, init, \
     checkpoint, restore), exit-at-once:CODE, never-listen, mute, exit-after:N, crash-at:N, \
     lost-at-checkpoint, refuse-state, deaf-restored"
)]
pub struct ParseFaultError(pub String);

impl FromStr for Fault {
    type Err = ParseFaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseFaultError(text.to_owned());
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        let step = || match value {
            "spawn" => Ok(Step::Spawn),
            "boot" => Ok(Step::Boot),
            "init" => Ok(Step::Init),
            "checkpoint" => Ok(Step::Checkpoint),
            "restore" => Ok(Step::Restore),
            _ => Err(unknown()),
        };
        let count = || value.parse().map_err(|_| unknown());
        match (kind, value) {
            ("fail", _) => step().map(Self::FailAt),
            ("panic", _) => step().map(Self::PanicAt),
            ("hang", _) => step().map(Self::HangAt),
            ("exit-at-once", _) => value.parse().map(Self::ExitAtOnce).map_err(|_| unknown()),
            ("never-listen", "") => Ok(Self::NeverListen),
            ("mute", "") => Ok(Self::Mute),
            ("lost-at-checkpoint", "") => Ok(Self::LostAtCheckpoint),
            ("refuse-state", "") => Ok(Self::RefuseState),
            ("deaf-restored", "") => Ok(Self::DeafRestored),
            ("exit-after", _) => count().map(Self::ExitAfter),
            ("crash-at", _) => count().map(Self::CrashAt),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FailAt(step) => write!(f, "fail:{step}"),
            Self::PanicAt(step) => write!(f, "panic:{step}"),
            Self::HangAt(step) => write!(f, "hang:{step}"),
            Self::ExitAtOnce(code) => write!(f, "exit-at-once:{code}"),
            Self::NeverListen => f.write_str("never-listen"),
            Self::Mute => f.write_str("mute"),
            Self::ExitAfter(n) => write!(f, "exit-after:{n}"),
            Self::CrashAt(n) => write!(f, "crash-at:{n}"),
            Self::LostAtCheckpoint => f.write_str("lost-at-checkpoint"),
            Self::RefuseState => f.write_str("refuse-state"),
            Self::DeafRestored => f.write_str("deaf-restored"),
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What one sandbox does: the configuration, overridden by its process's variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) spawn: Duration,
    pub(super) boot: Duration,
    pub(super) init: Duration,
    pub(super) listen: Duration,
    pub(super) reply: Duration,
    pub(super) fault: Option<Fault>,
}

/// Why a variable cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlanError {
    #[error("{name}={value:?} is not a whole number of milliseconds")]
    Time { name: String, value: String },
    #[error("VHIVE_SIM_FAULT: {0}")]
    Fault(ParseFaultError),
    #[error("unknown variable {0}")]
    Unknown(String),
}

impl Plan {
    pub(super) fn of(config: &SimConfig, env: &[String]) -> Result<Self, PlanError> {
        let mut plan = Self {
            spawn: config.spawn.0,
            boot: config.boot.0,
            init: config.init.0,
            listen: config.listen.0,
            reply: config.reply.0,
            fault: config.fault,
        };
        for entry in env {
            let Some((name, value)) = entry.split_once('=') else { continue };
            let Some(what) = name.strip_prefix("VHIVE_SIM_") else { continue };
            let time = match what {
                "SPAWN_MS" => &mut plan.spawn,
                "BOOT_MS" => &mut plan.boot,
                "INIT_MS" => &mut plan.init,
                "LISTEN_MS" => &mut plan.listen,
                "REPLY_MS" => &mut plan.reply,
                // Read when it is said.
                "SAY" => continue,
                "FAULT" if value.is_empty() => {
                    plan.fault = None;
                    continue;
                }
                "FAULT" => {
                    plan.fault = Some(value.parse().map_err(PlanError::Fault)?);
                    continue;
                }
                _ => return Err(PlanError::Unknown(name.to_owned())),
            };
            let millis = value
                .parse::<u32>()
                .map_err(|_| PlanError::Time { name: name.to_owned(), value: value.to_owned() })?;
            *time = Duration::from_millis(millis.into());
        }
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_survive_their_text() {
        let texts = [
            "fail:spawn",
            "panic:boot",
            "hang:init",
            "exit-at-once:-1",
            "never-listen",
            "mute",
            "exit-after:5",
            "crash-at:1",
            "fail:checkpoint",
            "hang:restore",
            "lost-at-checkpoint",
            "refuse-state",
            "deaf-restored",
        ];
        for text in texts {
            let fault: Fault = text.parse().unwrap();
            assert_eq!(fault.to_string(), text);
        }
        for text in ["", "fail", "fail:lunch", "mute:1", "exit-after:x", "crash-at:-1"] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn variables_override_and_nonsense_is_named() {
        let config = SimConfig { boot: Duration::from_secs(1).into(), ..SimConfig::default() };
        let env = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let good = ["PORT=1", "VHIVE_SIM_BOOT_MS=20", "VHIVE_SIM_FAULT=mute", "VHIVE_SIM_SAY=a b"];
        let plan = Plan::of(&config, &env(&good)).unwrap();
        assert_eq!((plan.boot, plan.fault), (Duration::from_millis(20), Some(Fault::Mute)));
        for bad in ["VHIVE_SIM_BOOT_MS=1s", "VHIVE_SIM_FAULT=sun", "VHIVE_SIM_COLOUR=red"] {
            let error = Plan::of(&config, &env(&[bad])).expect_err(bad).to_string();
            assert!(error.contains(bad.split_once('=').unwrap().0), "{error}");
        }
    }
}
