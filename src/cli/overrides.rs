//! `rayguard pin`, `unpin`, `freeze`, `unfreeze`, `shadow`, `enforce`, `reload`: overriding limits,
//! and giving it back.

use crate::admin::schema::{
    Done, FreezeRequest, ModeRequest, PinRequest, ReloadRequest, Reloaded, UnpinRequest,
};
use crate::cli::class_name::ClassName;
use crate::cli::client::{Client, ClientError, Reach, json, reason, who};
use crate::cli::format::Format;
use crate::config::quantity::PerSecond;
use crate::core::admission::table::Mode as ShedMode;
use crate::core::event::LimitKind;
use std::io::Write;
use std::str::FromStr;

/// Holds a limit at a value for a while.
#[derive(clap::Args, Clone, Debug)]
pub struct PinArgs {
    /// Class name, for example job-submit.
    #[arg(value_parser = ClassName, hide_possible_values = true)]
    pub class: String,
    /// Limit and value: rate=5/s, rate=120/min or in_flight=20.
    #[arg(value_name = "LIMIT=VALUE")]
    pub limit: Setting,
    /// Duration, at most 30d; then the controller moves the limit again, starting from this value.
    #[arg(long = "for", value_name = "LENGTH", default_value = "1h")]
    pub length: String,
    /// Reason, kept in the adjustment log; asked for at a terminal.
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// Lets the controller move a pinned limit again.
#[derive(clap::Args, Clone, Debug)]
pub struct UnpinArgs {
    /// The class.
    #[arg(value_parser = ClassName, hide_possible_values = true)]
    pub class: String,
    /// Which limit: rate or in_flight.
    #[arg(value_parser = kind)]
    pub limit: LimitKind,
    /// Reason, kept in the adjustment log.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// What has a reason and nothing else.
#[derive(clap::Args, Clone, Debug)]
pub struct FreezeArgs {
    /// Reason, kept in the adjustment log; asked for at a terminal.
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// Reads the configuration file again.
#[derive(clap::Args, Clone, Debug)]
pub struct ReloadArgs {
    /// Reason, kept in the adjustment log.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// Says what becomes of sheds.
#[derive(clap::Args, Clone, Debug)]
pub struct ModeArgs {
    /// Class name. Default: all classes.
    #[arg(value_parser = ClassName, hide_possible_values = true)]
    pub class: Option<String>,
    /// Reason, kept in the adjustment log; asked for at a terminal.
    #[arg(long, value_name = "TEXT")]
    pub why: Option<String>,
    /// Address of the running rayguard.
    #[command(flatten)]
    pub reach: Reach,
}

/// `rate=5`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setting {
    /// Which limit.
    pub limit: LimitKind,
    /// Its value.
    pub value: f64,
}

impl FromStr for Setting {
    type Err = String;
    fn from_str(text: &str) -> Result<Setting, String> {
        let (limit, value) =
            text.split_once('=').ok_or("write the limit and its value, such as rate=5/s or in_flight=20")?;
        let limit = kind(limit)?;
        // A rate as in the configuration, or per second.
        let number = match value.parse::<PerSecond>() {
            Ok(PerSecond(rate)) if limit == LimitKind::Rate => rate,
            _ => value.parse::<f64>().map_err(|_| match limit {
                LimitKind::Rate => format!("`{value}` is not a rate; write rate=5/s or rate=120/min"),
                _ => format!("`{value}` is not a number; write in_flight=20"),
            })?,
        };
        if !number.is_finite() || number < 0.0 {
            return Err(format!("{value} cannot be a limit; write a number of 0 or more"));
        }
        Ok(Setting { limit, value: number })
    }
}

fn kind(text: &str) -> Result<LimitKind, String> {
    match text {
        "rate" => Ok(LimitKind::Rate),
        "in_flight" | "in-flight" => Ok(LimitKind::InFlight),
        _ => Err(format!("unknown limit `{text}`; use rate or in_flight")),
    }
}

/// Carries out `pin`.
pub async fn pin(args: &PinArgs, out: &mut dyn Write) -> Result<(), ClientError> {
    let order = PinRequest {
        class: args.class.clone(),
        limit: args.limit.limit,
        value: args.limit.value,
        r#for: args.length.clone(),
        why: reason(args.why.as_deref())?,
        who: who(),
    };
    send(&args.reach, "/api/v1/pin", &order, out).await
}

/// Carries out `unpin`.
pub async fn unpin(args: &UnpinArgs, out: &mut dyn Write) -> Result<(), ClientError> {
    let order =
        UnpinRequest { class: args.class.clone(), limit: args.limit, why: args.why.clone(), who: who() };
    send(&args.reach, "/api/v1/unpin", &order, out).await
}

/// Carries out `freeze` and `unfreeze`.
pub async fn freeze(args: &FreezeArgs, frozen: bool, out: &mut dyn Write) -> Result<(), ClientError> {
    let path = if frozen { "/api/v1/freeze" } else { "/api/v1/unfreeze" };
    let why = reason(args.why.as_deref())?;
    send(&args.reach, path, &FreezeRequest { why, who: who() }, out).await
}

/// Carries out `shadow` and `enforce`.
pub async fn mode(args: &ModeArgs, mode: ShedMode, out: &mut dyn Write) -> Result<(), ClientError> {
    let why = reason(args.why.as_deref())?;
    let order = ModeRequest { mode, class: args.class.clone(), why, who: who() };
    send(&args.reach, "/api/v1/mode", &order, out).await
}

/// Carries out `reload`.
pub async fn reload(args: &ReloadArgs, out: &mut dyn Write) -> Result<(), ClientError> {
    let order = ReloadRequest { why: args.why.clone(), who: who() };
    let reloaded: Reloaded = Client::new(&args.reach)?.post("/api/v1/reload", &order).await?;
    if args.reach.format == Format::Json {
        return json(out, &reloaded);
    }
    writeln!(out, "{}", reloaded.done)?;
    Ok(())
}

async fn send(
    reach: &Reach,
    path: &str,
    order: &impl serde::Serialize,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let done: Done = Client::new(reach)?.post(path, order).await?;
    if reach.format == Format::Json {
        return json(out, &done);
    }
    writeln!(out, "{}", done.done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_a_limit_and_a_number() {
        assert_eq!("rate=5".parse(), Ok(Setting { limit: LimitKind::Rate, value: 5.0 }));
        assert_eq!("rate=0.5/s".parse(), Ok(Setting { limit: LimitKind::Rate, value: 0.5 }));
        assert_eq!("rate=120/min".parse(), Ok(Setting { limit: LimitKind::Rate, value: 2.0 }));
        assert!("in_flight=5/s".parse::<Setting>().is_err());
        assert_eq!("in-flight=20".parse(), Ok(Setting { limit: LimitKind::InFlight, value: 20.0 }));
        for wrong in ["", "rate", "rate=", "rate=x", "rate=-1", "rate=nan", "rate=inf", "speed=5"] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
    }
}
