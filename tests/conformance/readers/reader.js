// SPDX-License-Identifier: GPL-2.0-only OR MIT
// Reads a list as Node programs do: node reader.js MODE LIST OUT
const fs = require("fs");
const readline = require("readline");

const [mode, list, out] = process.argv.slice(2);

const modes = {
  readFileSync: () => process.stdout.write(fs.readFileSync(list)),
  utf8: () => process.stdout.write(fs.readFileSync(list, "utf8")),
  copyFileSync: () => {
    try {
      fs.copyFileSync(list, out);
    } catch (error) {
      console.log(error.code);
    }
    process.stdout.write(fs.readFileSync(out));
  },
  stream: () => fs.createReadStream(list).pipe(process.stdout),
  readFile: () =>
    fs.readFile(list, (error, data) => (error ? console.log(error.code) : process.stdout.write(data))),
  promises: () => fs.promises.readFile(list).then((data) => process.stdout.write(data)),
  statread: () => {
    const size = fs.statSync(list).size;
    const data = Buffer.alloc(size);
    console.log(size, fs.readSync(fs.openSync(list), data, 0, size, null));
    process.stdout.write(data);
  },
  readline: () =>
    readline
      .createInterface({ input: fs.createReadStream(list) })
      .on("line", (line) => console.log(line)),
};
modes[mode]();
