//! Prints a slice of the machine, `diagram <slice> <format>`, without building the whole of `compute_ctl`.

use std::process::ExitCode;

use compute_states::diagram::{self, Format, Slice};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted = match arguments.as_slice() {
        [slice, format] => slice.parse::<Slice>().and_then(|slice| Ok((slice, format.parse::<Format>()?))),
        _ => Err(diagram::UnknownName),
    };
    let Ok((slice, format)) = wanted else {
        let slices = Slice::ALL.map(Slice::name).join("|");
        let formats = Format::ALL.map(Format::name).join("|");
        eprintln!("usage: diagram {slices} {formats}");
        return ExitCode::from(2);
    };
    print!("{}", diagram::render(slice, format));
    ExitCode::SUCCESS
}
