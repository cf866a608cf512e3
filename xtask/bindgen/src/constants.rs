//! The constants of the parts: where they lie, and how they move.

use walrus::{ConstExpr, DataKind, MemoryId, Module, ir::Value};

use crate::parts::Part;

/// What of the module's constants belongs to parts.
pub(crate) struct Constants(Vec<Place>);

struct Place {
    part: usize,
    symbol: String,
    address: usize,
    length: usize,
}

/// A constant that was taken out of the first module.
pub(crate) struct Taken {
    pub(crate) part: usize,
    address: usize,
    bytes: Vec<u8>,
}

/// Finds the parts' constants in the linker's map, whose lines are address, offset in the file, size, symbol. Only what lies
/// in memory has an address.
pub(crate) fn of(map: &str, parts: &[Part]) -> Result<Constants, String> {
    let mut places = Vec::new();
    for (part, Part { name, constants, .. }) in parts.iter().enumerate() {
        for wanted in *constants {
            let before = places.len();
            places.extend(map.lines().filter_map(|line| place(line, wanted, part)));
            if places.len() == before {
                return Err(format!("there is no constant {wanted}, which is to be in {name}"));
            }
        }
    }
    Ok(Constants(places))
}

fn place(line: &str, wanted: &str, part: usize) -> Option<Place> {
    let mut columns = line.split_whitespace();
    let mut number = || usize::from_str_radix(columns.next()?, 16).ok();
    let (address, _, length) = (number()?, number()?, number()?);
    // The line of the section that holds the symbol has more in it than a symbol.
    let symbol = columns.next().filter(|symbol| !symbol.contains('(') && symbol.contains(wanted))?.to_owned();
    Some(Place { part, symbol, address, length })
}

impl Constants {
    /// Takes the constants out of a module, and leaves zeros, which wasm-opt does not write.
    pub(crate) fn take(&self, module: &mut Module) -> Result<Vec<Taken>, String> {
        self.0.iter().map(|place| place.take(module)).collect()
    }
}

impl Place {
    fn take(&self, module: &mut Module) -> Result<Taken, String> {
        let Self { part, address, length, .. } = *self;
        let found = module.data.iter().find_map(|data| {
            let DataKind::Active { offset: ConstExpr::Value(Value::I32(first)), .. } = data.kind else { return None };
            let from = address.checked_sub(usize::try_from(first).ok()?)?;
            let range = from..from.checked_add(length)?;
            data.value.get(range.clone()).map(|_| (data.id(), range))
        });
        let bytes = found.and_then(|(data, range)| module.data.get_mut(data).value.get_mut(range));
        let bytes = bytes.ok_or_else(|| format!("the module has nothing at the place of {}", self.symbol))?;
        let taken = Taken { part, address, bytes: bytes.to_vec() };
        bytes.fill(0);
        Ok(taken)
    }
}

impl Taken {
    /// Puts it into a part, at its address.
    pub(crate) fn put(&self, module: &mut Module) -> Result<(), String> {
        let memory = memory(module)?;
        let address = i32::try_from(self.address).map_err(|why| why.to_string())?;
        let kind = DataKind::Active { memory, offset: ConstExpr::Value(Value::I32(address)) };
        let id = module.data.add(kind, self.bytes.clone());
        module.memories.get_mut(memory).data_segments.insert(id);
        Ok(())
    }
}

fn memory(module: &Module) -> Result<MemoryId, String> {
    module.memories.iter().next().map(|memory| memory.id()).ok_or_else(|| "the module has no memory".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [Part; 1] =
        [Part { name: "one", needs: &[], exports: &[], code: &[], gates: &[], constants: &["3one5TABLE"] }];

    const MAP: &str = "    Addr      Off     Size Out     In      Symbol
  100010     2000        3         a.o:(.rodata._R3one5TABLE)
  100010     2000        3                 _R3one5TABLE
       -     3000        9                 _R3one5TABLE_function
";

    fn module() -> Module {
        let mut module = Module::default();
        let memory = module.memories.add_local(false, false, 17, None, None);
        let offset = ConstExpr::Value(Value::I32(0x10_000e));
        let data = module.data.add(DataKind::Active { memory, offset }, (1..=8).collect());
        module.memories.get_mut(memory).data_segments.insert(data);
        module
    }

    #[test]
    fn a_constant_leaves_zeros_and_keeps_its_address() {
        let mut whole = module();
        let taken = of(MAP, &PARTS).unwrap().take(&mut whole).unwrap();
        assert_eq!(whole.data.iter().next().unwrap().value, [1, 2, 0, 0, 0, 6, 7, 8]);
        let mut part = Module::default();
        part.memories.add_local(false, false, 17, None, None);
        taken[0].put(&mut part).unwrap();
        let data = part.data.iter().next().unwrap();
        assert_eq!((taken.len(), taken[0].part, data.value.as_slice()), (1, 0, &[3, 4, 5][..]));
        assert!(matches!(data.kind, DataKind::Active { offset: ConstExpr::Value(Value::I32(0x10_0010)), .. }));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let Err(why) = of("", &PARTS) else { panic!("it was taken") };
        assert_eq!(why, "there is no constant 3one5TABLE, which is to be in one");
        let elsewhere = MAP.replace("  100010", "  200000");
        let Err(why) = of(&elsewhere, &PARTS).unwrap().take(&mut module()) else { panic!("it was taken") };
        assert_eq!(why, "the module has nothing at the place of _R3one5TABLE");
    }
}
