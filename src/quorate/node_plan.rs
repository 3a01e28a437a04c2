//! Where the nodes of a local cluster listen.

use std::io;
use std::net::TcpListener;

use quorate_types::{Endpoint, NodeId};

/// One node of a local cluster, before it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Its number.
    pub node: NodeId,
    /// Where it listens for clients.
    pub client: Endpoint,
    /// Where clients are told to reach it: there, or at what stands before it.
    pub advertised: Endpoint,
    /// Where other nodes reach it.
    pub internal: Endpoint,
}

impl NodePlan {
    /// Nodes 1 … `count` on 127.0.0.1: node i at `base` + 10·(i−1), and the next port for nodes.
    ///
    /// # Errors
    /// When a port would be above 65535.
    pub fn at_base_port(count: u32, base: u16) -> io::Result<Vec<Self>> {
        (1..=count)
            .map(|number| {
                let port = u32::from(base) + 10 * (number - 1);
                let endpoint = |port: u32| {
                    let port = u16::try_from(port)
                        .map_err(|_| io::Error::other(format!("port {port} is above 65535")))?;
                    Ok::<_, io::Error>(Endpoint {
                        host: "127.0.0.1".to_owned(),
                        port,
                    })
                };
                let client = endpoint(port)?;
                Ok(Self {
                    node: NodeId::new(number),
                    advertised: client.clone(),
                    client,
                    internal: endpoint(port + 1)?,
                })
            })
            .collect()
    }

    /// The first address of this node that another process listens at.
    pub(crate) fn taken(&self) -> Option<&Endpoint> {
        [&self.client, &self.internal].into_iter().find(|at| {
            TcpListener::bind((at.host.as_str(), at.port))
                .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        })
    }

    /// Nodes 1 … `count` on ports that the kernel gives, each node on a loopback address of its
    /// own where the machine has such. There nothing else takes a port while its node is down: not
    /// an outgoing connection, whose source is 127.0.0.1, and so never one to itself either.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn on_free_ports(count: u32) -> io::Result<Vec<Self>> {
        (1..=count)
            .map(|number| {
                let own = format!("127.0.0.{}", number + 1);
                let host = if TcpListener::bind((own.as_str(), 0)).is_ok() {
                    own
                } else {
                    "127.0.0.1".to_owned()
                };
                // Both are held until both are known, so that they differ.
                let client = TcpListener::bind((host.as_str(), 0))?;
                let internal = TcpListener::bind((host.as_str(), 0))?;
                let endpoint = |listener: &TcpListener| {
                    Ok::<_, io::Error>(Endpoint {
                        host: host.clone(),
                        port: listener.local_addr()?.port(),
                    })
                };
                let at = endpoint(&client)?;
                Ok(Self {
                    node: NodeId::new(number),
                    advertised: at.clone(),
                    client: at,
                    internal: endpoint(&internal)?,
                })
            })
            .collect()
    }
}

/// `--controllers` for these nodes: the first 1, 3 or 5 of them.
pub fn controllers(nodes: &[NodePlan]) -> String {
    let count = match nodes.len() {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    };
    let list: Vec<String> = nodes
        .iter()
        .take(count)
        .map(|plan| format!("{}@{}", plan.node, plan.internal))
        .collect();
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dev_nodes_are_ten_ports_apart() {
        let plans = NodePlan::at_base_port(3, 7070).unwrap();
        let clients: Vec<String> = plans.iter().map(|plan| plan.client.to_string()).collect();
        assert_eq!(
            clients,
            ["127.0.0.1:7070", "127.0.0.1:7080", "127.0.0.1:7090"]
        );
        assert_eq!(
            controllers(&plans),
            "1@127.0.0.1:7071,2@127.0.0.1:7081,3@127.0.0.1:7091"
        );
        assert!(NodePlan::at_base_port(3, 65_530).is_err());
    }

    #[test]
    fn the_number_of_controllers_is_odd() {
        for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (9, 5)] {
            let plans = NodePlan::at_base_port(nodes, 7070).unwrap();
            assert_eq!(controllers(&plans).split(',').count(), voters);
        }
    }

    #[test]
    fn free_ports_differ() {
        let plans = NodePlan::on_free_ports(3).unwrap();
        let mut all: Vec<String> = plans
            .iter()
            .flat_map(|plan| [plan.client.to_string(), plan.internal.to_string()])
            .collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 6);
    }
}
