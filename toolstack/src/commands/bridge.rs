//! `xpv bridge`: dom0's bridges, their ports, stations and VLANs, in the words and the JSON of bridge(8).

mod asked;
mod fdb;
mod link;
mod list;
mod mirror;
mod port;
mod set;
mod vlan;
mod words;

use crate::dir::Dir;
use crate::error::Result;

/// Show and change the bridges of dom0
///
/// In the words of bridge(8), and with --json in its shapes: link, fdb and vlan. A port is named by its interface: a vif's, or that of a port of the
/// host. What is set of a vif is written to its device, as by xpv network-set, and lasts until that is detached; all else is kept for the
/// next dom0, until it is changed again or that one's --bridge, or host.toml, says another thing (docs/networks.md).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    /// The vifs are of domains of the Xen host that this program runs on
    #[arg(long, global = true)]
    xen: bool,

    #[command(subcommand)]
    command: BridgeCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BridgeCommand {
    /// List the bridges
    List,
    /// Show a bridge, its settings, and its ports with what they have counted
    Show {
        /// The bridge
        bridge: String,
    },
    /// Change a bridge's settings: ageing_time=SECONDS, fdb_max_learned=ENTRIES, group_fwd_mask=MASK
    Set {
        /// The bridge
        bridge: String,
        /// What to change
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Show ports, or change one: [show] [dev PORT] | set dev PORT [FLAG on|off]... [KEY VALUE]..., keys as of
    /// network-set
    Link {
        /// Words as those of `bridge link`
        words: Vec<String>,
    },
    /// Show stations, or change them: [show] [br BRIDGE] [dev PORT] [vlan VID] | get MAC [br BRIDGE] [vlan VID] | add|replace MAC
    /// dev PORT [vlan VID] [static|dynamic|sticky] | del MAC dev PORT [vlan VID] | flush dev PORT|BRIDGE [vlan VID]
    /// [static|dynamic|sticky|learned]
    Fdb {
        /// Words as those of `bridge fdb`
        words: Vec<String>,
    },
    /// Show mirrors, or change them: [show] [br BRIDGE] | add NAME br BRIDGE [all] [src PORT]... [dst PORT]... [vlan VID]... output PORT |
    /// del NAME br BRIDGE
    Mirror {
        /// What to do
        words: Vec<String>,
    },
    /// Have an interface of the host be a port of a bridge, or no longer: add tap:NAME|packet:NAME[,KEY=VALUE...] br BRIDGE | del PORT
    Port {
        /// What to do
        words: Vec<String>,
    },
    /// Show the VLANs of ports, or change them: [show] [dev PORT] | add dev PORT vid VID[-VID] [pvid] [untagged] |
    /// del dev PORT vid VID[-VID]
    Vlan {
        /// Words as those of `bridge vlan`
        words: Vec<String>,
    },
}

/// Shows or changes what is asked for.
///
/// # Errors
/// No dom0 answers, there is no such bridge or port, or a word is not understood.
pub fn run(args: &Args, dir: &Dir) -> Result<()> {
    let asked = asked::Asked { dir, xen: args.xen, json: args.json };
    match &args.command {
        BridgeCommand::List => list::list(&asked),
        BridgeCommand::Show { bridge } => list::show(&asked, bridge),
        BridgeCommand::Set { bridge, settings } => set::bridge(&asked, bridge, settings),
        BridgeCommand::Link { words } => link::run(&asked, words),
        BridgeCommand::Fdb { words } => fdb::run(&asked, words),
        BridgeCommand::Mirror { words } => mirror::run(&asked, words),
        BridgeCommand::Port { words } => port::run(&asked, words),
        BridgeCommand::Vlan { words } => vlan::run(&asked, words),
    }
}
