//! Events that a comparison server makes itself: it is only told how many, over its control connection.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::RangeInclusive;

use super::{ANSWER_WITHIN, Outlet};

/// A comparison server's control connection.
#[derive(Debug)]
pub(crate) struct Orders(TcpStream);

impl Orders {
    /// Connects to the control address.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(crate) fn connect(control: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&control, ANSWER_WITHIN)?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }
}

impl Outlet for Orders {
    fn publish(&mut self, numbers: RangeInclusive<u64>) -> io::Result<(u64, String)> {
        let count = numbers.end() - numbers.start() + 1;
        writeln!(self.0, "{} {count}", numbers.start())?;
        Ok((count, "ordered".to_owned()))
    }
}
