use tightbeam::Endpoint;

fn main() {
    let mut client = Endpoint::connect("shm:/tmp/x.sock").unwrap();
    std::thread::spawn(move || client.poll(1));
}
