//! Tables: columns in memory that data frames take over without a copy, by the Arrow C data interface.
//!
//! Offsets and lengths are `uint64` in bytes, kinds are dictionary-encoded strings, what is absent is null. One table is
//! one batch, so that a column is one piece of memory, which NumPy can look at as well.

mod foreign;

use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::ffi::FFI_ArrowSchema;
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal128Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, DictionaryArray, PrimitiveArray, RecordBatch, RecordBatchIterator, StringArray};
use arrow_buffer::{NullBuffer, NullBufferBuilder, ScalarBuffer};
use arrow_data::transform::MutableArrayData;
use arrow_schema::{ArrowError, DataType, Field, Schema};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyIndexError, PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyList, PyString, PyTuple};

pub(crate) use foreign::batches;

/// Rows and named columns.
#[derive(Debug, Clone)]
#[pyclass(frozen, module = "qcowkit._qcowkit")]
pub(crate) struct Table {
    batch: RecordBatch,
}

#[pymethods]
impl Table {
    /// Rows.
    fn __len__(&self) -> usize {
        self.batch.num_rows()
    }

    /// The names of the columns, in order.
    #[getter]
    fn column_names(&self) -> Vec<String> {
        self.batch.schema_ref().fields().iter().map(|field| field.name().clone()).collect()
    }

    /// The types of the columns, in order, as Arrow calls them.
    #[getter]
    fn column_types(&self) -> Vec<String> {
        self.batch.schema_ref().fields().iter().map(|field| type_name(field.data_type()).to_owned()).collect()
    }

    /// Bytes of memory that the columns take.
    #[getter]
    fn nbytes(&self) -> usize {
        self.batch.get_array_memory_size()
    }

    /// The rows from `start` to `stop` as tuples.
    fn rows<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> PyResult<Bound<'py, PyList>> {
        let stop = stop.min(self.batch.num_rows());
        let columns =
            self.batch.columns().iter().map(|column| Values::new(py, column)).collect::<PyResult<Vec<_>>>()?;
        let rows = (start..stop).map(|row| {
            let values = columns.iter().map(|column| column.get(py, row)).collect::<PyResult<Vec<_>>>()?;
            PyTuple::new(py, values)
        });
        PyList::new(py, rows.collect::<PyResult<Vec<_>>>()?)
    }

    /// Every `step`th of `length` rows from `start` on; without a copy if `step` is 1.
    fn slice(&self, start: usize, length: usize, step: isize) -> PyResult<Self> {
        let out_of_range = || PyIndexError::new_err("rows beyond the end of the table");
        if length > 0 {
            let last = isize::try_from(length - 1).ok().and_then(|steps| steps.checked_mul(step));
            let last = last.and_then(|reach| start.checked_add_signed(reach)).ok_or_else(out_of_range)?;
            if start.max(last) >= self.batch.num_rows() {
                return Err(out_of_range());
            }
        }
        if step == 1 || length == 0 {
            let start = start.min(self.batch.num_rows());
            return Ok(Self { batch: self.batch.slice(start, length) });
        }
        let columns = self.batch.columns().iter().map(|column| {
            let data = column.to_data();
            let mut picked = MutableArrayData::new(vec![&data], false, length);
            let mut row = start;
            for _ in 0..length {
                picked.try_extend(0, row, row + 1)?;
                row = row.saturating_add_signed(step);
            }
            Ok(arrow_array::make_array(picked.freeze()))
        });
        let columns = columns.collect::<std::result::Result<Vec<ArrayRef>, ArrowError>>().map_err(wrong)?;
        let batch = RecordBatch::try_new(self.batch.schema(), columns).map_err(wrong)?;
        Ok(Self { batch })
    }

    /// The schema for other libraries: Arrow's PyCapsule interface.
    fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        let schema = FFI_ArrowSchema::try_from(self.batch.schema_ref().as_ref()).map_err(wrong)?;
        PyCapsule::new_with_value(py, schema, c"arrow_schema")
    }

    /// The rows for other libraries: Arrow's PyCapsule interface. Another schema than the table's own is not given.
    #[pyo3(signature = (requested_schema = None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        drop(requested_schema);
        let batches = RecordBatchIterator::new([Ok(self.batch.clone())], self.batch.schema());
        PyCapsule::new_with_value(py, FFI_ArrowArrayStream::new(Box::new(batches)), c"arrow_array_stream")
    }
}

/// One column of a table.
#[derive(Debug)]
#[pyclass(frozen, subclass, module = "qcowkit._qcowkit")]
pub(crate) struct Column {
    name: String,
    values: ArrayRef,
    /// What the buffer protocol wants to point at: see `foreign.rs`.
    shape: [isize; 1],
    strides: [isize; 1],
}

#[pymethods]
impl Column {
    /// Of a table, or once more of a column.
    #[new]
    fn new(source: &Bound<'_, PyAny>, name: &str) -> PyResult<Self> {
        if let Ok(column) = source.cast::<Self>() {
            return Ok(Self::of(name.to_owned(), Arc::clone(&column.get().values)));
        }
        let table = source.cast::<Table>()?.get();
        let values = table.batch.column_by_name(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        Ok(Self::of(name.to_owned(), Arc::clone(values)))
    }

    fn __len__(&self) -> usize {
        self.values.len()
    }

    /// The column's name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The type: `uint64`, `int64`, `uint32`, `int8`, `dictionary` or `string`.
    #[getter]
    fn r#type(&self) -> &'static str {
        type_name(self.values.data_type())
    }

    /// Values that are absent.
    #[getter]
    fn null_count(&self) -> usize {
        self.values.null_count()
    }

    /// The values from `start` to `stop`; what is absent is `None`.
    fn values<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> PyResult<Bound<'py, PyList>> {
        let stop = stop.min(self.values.len());
        let start = start.min(stop);
        if let Some(numbers) = self.values.as_primitive_opt::<UInt64Type>() {
            // Most columns are of these, and long.
            return PyList::new(py, numbers.slice(start, stop - start).iter());
        }
        let values = Values::new(py, &self.values)?;
        PyList::new(py, (start..stop).map(|row| values.get(py, row)).collect::<PyResult<Vec<_>>>()?)
    }

    /// One byte for each value: 1 where it is there. `None` where all are.
    fn validity(&self) -> Option<Vec<u8>> {
        let nulls = self.values.nulls().filter(|nulls| nulls.null_count() > 0)?;
        Some(nulls.iter().map(u8::from).collect())
    }

    /// The numbers as memory, also where some are absent: what stands there then means nothing.
    fn data(&self) -> PyResult<Self> {
        let bare = self.values.to_data().into_builder().nulls(None).build().map_err(wrong)?;
        Ok(Self::of(self.name.clone(), arrow_array::make_array(bare)))
    }

    /// The numbers that stand for the strings of a dictionary-encoded column: indices of `categories`.
    fn codes(&self) -> PyResult<Self> {
        let codes: ArrayRef = match self.values.data_type() {
            DataType::Dictionary(key, _) if **key == DataType::Int8 => {
                Arc::new(self.values.as_dictionary::<Int8Type>().keys().clone())
            }
            DataType::Dictionary(_, _) => Arc::new(self.values.as_dictionary::<Int32Type>().keys().clone()),
            _ => return Err(PyValueError::new_err(format!("the column '{}' is not dictionary-encoded", self.name))),
        };
        Ok(Self::of(self.name.clone(), codes))
    }

    /// The strings of a dictionary-encoded column.
    fn categories(&self) -> PyResult<Vec<String>> {
        let Some(dictionary) = self.values.as_any_dictionary_opt() else {
            return Err(PyValueError::new_err(format!("the column '{}' is not dictionary-encoded", self.name)));
        };
        Ok(dictionary.values().as_string::<i32>().iter().flatten().map(str::to_owned).collect())
    }
}

impl Column {
    fn of(name: String, values: ArrayRef) -> Self {
        let width = values.data_type().primitive_width().unwrap_or(1);
        let (length, width) = (isize::try_from(values.len()), isize::try_from(width));
        Self { name, values, shape: [length.unwrap_or(0)], strides: [width.unwrap_or(1)] }
    }
}

/// Columns that are being collected.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl Columns {
    /// Numbers that are always there.
    pub(crate) fn u64(self, name: &str, values: Vec<u64>) -> Self {
        self.add(name, false, Arc::new(PrimitiveArray::<UInt64Type>::new(ScalarBuffer::from(values), None)))
    }

    /// Numbers that can be absent.
    pub(crate) fn optional_u64(self, name: &str, values: Optional) -> Self {
        let Optional { values, mut present } = values;
        let nulls = present.finish();
        self.add(name, true, Arc::new(PrimitiveArray::<UInt64Type>::new(ScalarBuffer::from(values), nulls)))
    }

    /// Small numbers that are always there.
    pub(crate) fn u32(self, name: &str, values: Vec<u32>) -> Self {
        self.add(name, false, Arc::new(PrimitiveArray::<UInt32Type>::new(ScalarBuffer::from(values), None)))
    }

    /// Differences; `None` is null.
    pub(crate) fn i64(self, name: &str, values: Vec<Option<i64>>) -> Self {
        self.add(name, true, Arc::new(PrimitiveArray::<Int64Type>::from(values)))
    }

    /// Strings out of few: `codes` are indices of `names`, of which there are at most 128.
    pub(crate) fn kinds(self, name: &str, names: &[&str], codes: Vec<i8>) -> Self {
        let keys = PrimitiveArray::<Int8Type>::new(ScalarBuffer::from(codes), None);
        let values = Arc::new(StringArray::from_iter_values(names));
        // The codes come from the same list as the names.
        let array = DictionaryArray::<Int8Type>::new(keys, values);
        self.add(name, false, Arc::new(array))
    }

    /// Strings; `None` is null.
    pub(crate) fn text<'a>(self, name: &str, values: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let mut builder = StringBuilder::new();
        values.into_iter().for_each(|value| builder.append_option(value));
        self.add(name, true, Arc::new(builder.finish()))
    }

    fn add(mut self, name: &str, nullable: bool, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name, array.data_type().clone(), nullable));
        self.arrays.push(array);
        self
    }

    /// The table; an error if the columns differ in length.
    pub(crate) fn table(self) -> PyResult<Table> {
        let batch = RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.arrays).map_err(wrong)?;
        Ok(Table { batch })
    }
}

/// Numbers of which some are absent.
#[derive(Debug)]
pub(crate) struct Optional {
    values: Vec<u64>,
    present: NullBufferBuilder,
}

impl Default for Optional {
    fn default() -> Self {
        Self { values: Vec::new(), present: NullBufferBuilder::new(0) }
    }
}

impl Optional {
    pub(crate) fn push(&mut self, value: Option<u64>) {
        self.values.push(value.unwrap_or(0));
        match value {
            Some(_) => self.present.append_non_null(),
            None => self.present.append_null(),
        }
    }

    /// Makes it as long as that, with nulls. Where nothing was there before, this takes address space alone.
    pub(crate) fn fill(&mut self, length: usize) {
        let more = length.saturating_sub(self.values.len());
        if self.values.is_empty() {
            self.values = vec![0; length];
        } else {
            self.values.resize(self.values.len() + more, 0);
        }
        self.present.append_n_nulls(more);
    }
}

impl FromIterator<Option<u64>> for Optional {
    fn from_iter<T: IntoIterator<Item = Option<u64>>>(values: T) -> Self {
        let mut all = Self::default();
        values.into_iter().for_each(|value| all.push(value));
        all
    }
}

/// A column, for reading value by value.
enum Values<'a, 'py> {
    U64(&'a PrimitiveArray<UInt64Type>),
    I64(&'a PrimitiveArray<Int64Type>),
    U32(&'a PrimitiveArray<UInt32Type>),
    I32(&'a PrimitiveArray<Int32Type>),
    I8(&'a PrimitiveArray<Int8Type>),
    F64(&'a PrimitiveArray<Float64Type>),
    Kind(&'a PrimitiveArray<Int8Type>, Vec<Bound<'py, PyString>>),
    Name(&'a PrimitiveArray<Int32Type>, Vec<Bound<'py, PyString>>),
    Text(&'a StringArray),
}

impl<'a, 'py> Values<'a, 'py> {
    fn new(py: Python<'py>, array: &'a ArrayRef) -> PyResult<Self> {
        let strings = |array: &ArrayRef| -> Vec<Bound<'py, PyString>> {
            array.as_string::<i32>().iter().map(|text| PyString::new(py, text.unwrap_or_default())).collect()
        };
        Ok(match array.data_type() {
            DataType::UInt64 => Self::U64(array.as_primitive()),
            DataType::Int64 => Self::I64(array.as_primitive()),
            DataType::UInt32 => Self::U32(array.as_primitive()),
            DataType::Int32 => Self::I32(array.as_primitive()),
            DataType::Int8 => Self::I8(array.as_primitive()),
            DataType::Float64 => Self::F64(array.as_primitive()),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Dictionary(key, _) if **key == DataType::Int8 => {
                let dictionary = array.as_dictionary::<Int8Type>();
                Self::Kind(dictionary.keys(), strings(dictionary.values()))
            }
            DataType::Dictionary(_, _) => {
                let dictionary = array.as_dictionary::<Int32Type>();
                Self::Name(dictionary.keys(), strings(dictionary.values()))
            }
            other => return Err(PyValueError::new_err(format!("no table has columns of type {other}"))),
        })
    }

    fn get(&self, py: Python<'py>, row: usize) -> PyResult<Bound<'py, PyAny>> {
        let nulls: Option<&NullBuffer> = match self {
            Self::U64(array) => array.nulls(),
            Self::I64(array) => array.nulls(),
            Self::U32(array) => array.nulls(),
            Self::F64(array) => array.nulls(),
            Self::Text(array) => array.nulls(),
            Self::Kind(codes, _) => codes.nulls(),
            Self::Name(codes, _) => codes.nulls(),
            Self::I32(_) | Self::I8(_) => None,
        };
        if nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return Ok(py.None().into_bound(py));
        }
        match self {
            Self::U64(array) => array.value(row).into_bound_py_any(py),
            Self::I64(array) => array.value(row).into_bound_py_any(py),
            Self::U32(array) => array.value(row).into_bound_py_any(py),
            Self::I32(array) => array.value(row).into_bound_py_any(py),
            Self::I8(array) => array.value(row).into_bound_py_any(py),
            Self::F64(array) => array.value(row).into_bound_py_any(py),
            Self::Text(array) => array.value(row).into_bound_py_any(py),
            Self::Kind(codes, names) => named(py, names, usize::try_from(codes.value(row)).ok()),
            Self::Name(codes, names) => named(py, names, usize::try_from(codes.value(row)).ok()),
        }
    }
}

fn named<'py>(py: Python<'py>, names: &[Bound<'py, PyString>], code: Option<usize>) -> PyResult<Bound<'py, PyAny>> {
    let name = code.and_then(|code| names.get(code));
    Ok(name.map_or_else(|| py.None().into_bound(py), |name| name.clone().into_any()))
}

fn type_name(kind: &DataType) -> &'static str {
    match kind {
        DataType::UInt64 => "uint64",
        DataType::Int64 => "int64",
        DataType::UInt32 => "uint32",
        DataType::Int32 => "int32",
        DataType::Int8 => "int8",
        DataType::Float64 => "float64",
        DataType::Dictionary(_, _) => "dictionary",
        _ => "string",
    }
}

/// A table of lists: name, type and values of each column. For tables that Python puts together.
#[pyfunction]
pub(crate) fn table_of(columns: Vec<(String, String, Bound<'_, PyAny>)>) -> PyResult<Table> {
    let mut all = Columns::default();
    for (name, kind, values) in columns {
        all = match kind.as_str() {
            "uint64" => {
                let values: Optional = values.extract::<Vec<Option<u64>>>()?.into_iter().collect();
                all.optional_u64(&name, values)
            }
            "uint32" => {
                let values: Vec<Option<u32>> = values.extract()?;
                all.add(&name, true, Arc::new(PrimitiveArray::<UInt32Type>::from(values)))
            }
            "int64" => all.i64(&name, values.extract()?),
            "float64" => {
                let values: Vec<Option<f64>> = values.extract()?;
                all.add(&name, true, Arc::new(PrimitiveArray::<Float64Type>::from(values)))
            }
            "dictionary" => {
                let values: Vec<Option<String>> = values.extract()?;
                all.add(
                    &name,
                    true,
                    Arc::new(values.iter().map(Option::as_deref).collect::<DictionaryArray<Int32Type>>()),
                )
            }
            "string" => {
                let values: Vec<Option<String>> = values.extract()?;
                all.text(&name, values.iter().map(Option::as_deref))
            }
            other => {
                let known = "uint64, uint32, int64, float64, dictionary and string";
                return Err(PyValueError::new_err(format!("no column has the type '{other}': there are {known}")));
            }
        };
    }
    all.table()
}

/// Offset and length of each row: the columns `guest_offset`, `offset` or `start`, and `length`.
///
/// # Errors
/// Which column is missing or is not of whole numbers, or has nulls or numbers below 0.
pub(crate) fn ranges_of(batches: &[RecordBatch]) -> std::result::Result<Vec<(u64, u64)>, String> {
    let mut ranges = Vec::new();
    for batch in batches {
        let offset = ["guest_offset", "offset", "start"].into_iter().find(|name| batch.column_by_name(name).is_some());
        let offset = offset.ok_or("a table of ranges has a column guest_offset, offset or start")?;
        let offsets = whole_numbers(batch, offset)?;
        ranges.extend(offsets.into_iter().zip(whole_numbers(batch, "length")?));
    }
    Ok(ranges)
}

/// The numbers of a column of any integer type.
///
/// # Errors
/// As [`ranges_of`].
pub(crate) fn whole_numbers(batch: &RecordBatch, name: &str) -> std::result::Result<Vec<u64>, String> {
    fn all<T: ArrowPrimitiveType>(array: &ArrayRef, name: &str) -> std::result::Result<Vec<u64>, String>
    where
        T::Native: TryInto<u64>,
    {
        let wrong = || format!("the column {name} has numbers below 0, or none at all");
        let values = array.as_primitive::<T>().iter();
        values.map(|value| value.and_then(|value| value.try_into().ok()).ok_or_else(wrong)).collect()
    }
    let array = batch.column_by_name(name).ok_or_else(|| format!("the table has no column {name}"))?;
    match array.data_type() {
        DataType::UInt64 => all::<UInt64Type>(array, name),
        DataType::Int64 => all::<Int64Type>(array, name),
        DataType::UInt32 => all::<UInt32Type>(array, name),
        DataType::Int32 => all::<Int32Type>(array, name),
        DataType::UInt16 => all::<UInt16Type>(array, name),
        DataType::Int16 => all::<Int16Type>(array, name),
        DataType::UInt8 => all::<UInt8Type>(array, name),
        DataType::Int8 => all::<Int8Type>(array, name),
        // What DuckDB makes of a sum.
        DataType::Decimal128(_, 0) => all::<Decimal128Type>(array, name),
        other => Err(format!("the column {name} is of type {other}, not of whole numbers")),
    }
}

/// The strings of a column of any string type; absent ones are `None`.
///
/// # Errors
/// Another type.
pub(crate) fn strings(batch: &RecordBatch, name: &str) -> std::result::Result<Option<Vec<Option<String>>>, String> {
    fn owned<'a>(values: impl Iterator<Item = Option<&'a str>>) -> Vec<Option<String>> {
        values.map(|value| value.map(str::to_owned)).collect()
    }
    let Some(array) = batch.column_by_name(name) else { return Ok(None) };
    Ok(Some(match array.data_type() {
        DataType::Utf8 => owned(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => owned(array.as_string::<i64>().iter()),
        DataType::Utf8View => owned(array.as_string_view().iter()),
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let one =
                RecordBatch::try_from_iter([(name, Arc::clone(dictionary.values()))]).map_err(|why| why.to_string())?;
            let values = strings(&one, name)?.unwrap_or_default();
            let keys = dictionary.normalized_keys();
            let value = |(row, key): (usize, usize)| {
                if array.is_null(row) { None } else { values.get(key).cloned().flatten() }
            };
            if values.is_empty() { vec![None; array.len()] } else { keys.into_iter().enumerate().map(value).collect() }
        }
        DataType::Null => vec![None; array.len()],
        other => return Err(format!("the column {name} is of type {other}, not of strings")),
    }))
}

/// What Arrow refuses.
fn wrong(error: ArrowError) -> PyErr {
    PyValueError::new_err(error.to_string())
}
