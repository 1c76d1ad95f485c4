// SPDX-License-Identifier: GPL-2.0-only OR MIT
//! Reads a list as Rust programs do: reader-rs MODE LIST OUT
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

fn got(mode: &str, list: &str, out: &str) -> io::Result<Vec<u8>> {
    let mut file = File::open(list)?;
    let mut data = Vec::new();
    match mode {
        "read" => data = fs::read(list)?,
        "string" => data = fs::read_to_string(list)?.into_bytes(),
        "copy" => {
            println!("{}", fs::copy(list, out)?);
            data = fs::read(out)?;
        }
        "iocopy" => {
            println!("{}", io::copy(&mut file, &mut File::create(out)?)?);
            data = fs::read(out)?;
        }
        "lines" => {
            for line in BufReader::new(file).lines() {
                data.extend(line?.into_bytes());
                data.push(b'\n');
            }
        }
        "exact" => {
            data.resize(file.metadata()?.len() as usize, 0);
            file.read_exact(&mut data)?;
        }
        "seek" => println!("{}", file.seek(SeekFrom::End(0))?),
        "partly" => {
            data.resize(10, 0);
            let count = file.read(&mut data)?;
            data.truncate(count);
            file.read_to_end(&mut data)?;
        }
        _ => std::process::exit(2),
    }
    Ok(data)
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    match got(&words[1], &words[2], &words[3]) {
        Ok(data) => io::stdout().write_all(&data).unwrap(),
        Err(error) => {
            println!("[{error}]");
            std::process::exit(1);
        }
    }
}
